"""A Python for each host: MACE and NequIP need different versions of e3nn, so that no environment has all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from efa_addons.errors import EFAError, how_to_install
from efa_addons.studies.hosts import DISTRIBUTIONS

ROOT = Path(__file__).resolve().parents[2]  # a clone, or site-packages
TOX = "tox.ini"


@dataclass(frozen=True)
class Environment:
    """A Python that has a host.

    Args:
        host: its name.
        python: path of the interpreter.
        version: of the host there.
    """

    host: str
    python: Path
    version: str

    @property
    def variables(self) -> dict[str, str]:
        """For processes there: they run this clone's efa_addons, not one that may be installed beside the host."""
        if not (ROOT / TOX).exists():
            return dict(os.environ)  # site-packages, with which would come all else that is installed here
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def find(host: str, given: Mapping[str, Path] | None = None) -> Environment:
    """The environment of a host: the one given, else this one, else that of tox in this clone, which is made if need be.

    Raises:
        EFAError: none is there and none can be made, or it lacks the host or what studies need.
    """
    if given and host in given:
        found = _installed(host, given[host])
        if found is None:
            raise EFAError(f"{given[host]} has no {DISTRIBUTIONS[host]}: give the Python of an environment with {host}.")
    elif here := _here(host):
        return here  # which has imported what studies need
    else:
        found = _installed(host, _of_tox(host)) or _made(host)
    _require_addons(found)
    return found


def _require_addons(environment: Environment) -> None:
    """What runs there imports efa_addons, and what studies need beside it."""
    done = subprocess.run(
        [str(environment.python), "-c", "import efa_addons.studies.sources"],
        capture_output=True,
        text=True,
        env=environment.variables,
    )
    if done.returncode:
        host, last = environment.host, done.stderr.strip().splitlines()[-1:]
        raise EFAError(
            f"{environment.python} has {DISTRIBUTIONS[host]}, but cannot run studies ({''.join(last)}): "
            f"there, {how_to_install(f'{host},data')}."
        )


def require_device(environment: Environment, device: str) -> None:
    """Raises where the torch of an environment finds no GPU for `device` "cuda": every run would fail."""
    if device == "cpu":
        return
    ask = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if subprocess.run([str(environment.python), "-c", ask], capture_output=True, env=environment.variables).returncode:
        raise EFAError(
            f"device {device}: the torch of {environment.python} finds no GPU. Take the device cpu, or with --python "
            f"{environment.host}=PATH an environment whose torch is built for the GPU."
        )


def _here(host: str) -> Environment | None:
    try:
        return Environment(host, Path(sys.executable), version(DISTRIBUTIONS[host]))
    except PackageNotFoundError:
        return None


def _of_tox(host: str) -> Path:
    return _clone() / ".tox" / host / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _clone() -> Path:
    """Where tox makes environments: the clone that this is, or else the one that the command is called in."""
    here = Path.cwd()
    return here if not (ROOT / TOX).exists() and (here / TOX).exists() and (here / "efa_addons").is_dir() else ROOT


def _installed(host: str, python: Path) -> Environment | None:
    """The environment of an interpreter, if it has the host."""
    if not python.exists():
        return None
    ask = f"from importlib.metadata import version; print(version({DISTRIBUTIONS[host]!r}))"
    done = subprocess.run([str(python), "-c", ask], capture_output=True, text=True)
    return Environment(host, python, done.stdout.strip()) if done.returncode == 0 else None


def _made(host: str) -> Environment:
    """The tox environment of a host in this clone, which is its tests' and has all that studies need."""
    advice = f"give the Python of an environment with {host}: --python {host}=PATH"
    if not (_clone() / TOX).exists():
        raise EFAError(f"no environment has {DISTRIBUTIONS[host]}, and outside a clone of efa_addons none is made: {advice}")
    if find_spec("tox") is None:
        raise EFAError(f"no environment has {DISTRIBUTIONS[host]}, and tox, which would make one, is not installed: {advice}")
    print(f"making an environment with {DISTRIBUTIONS[host]}, by tox …", flush=True)
    # its tests are not run, but what goes before them is, and that installs SchNetPack
    done = subprocess.run(
        [sys.executable, "-m", "tox", "-e", host, "--", "--version"], cwd=_clone(), capture_output=True, text=True
    )
    found = _installed(host, _of_tox(host))
    if done.returncode or found is None:
        raise EFAError(f"tox could not make an environment with {host}:\n{(done.stdout + done.stderr)[-2000:]}\n{advice}")
    return found
