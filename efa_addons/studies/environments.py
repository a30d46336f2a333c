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

from efa_addons.errors import EFAError
from efa_addons.studies.hosts import DISTRIBUTIONS

ROOT = Path(__file__).resolve().parents[2]  # a clone, or site-packages


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
        """For processes there: they run this efa_addons, not one that may be installed beside the host."""
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def find(host: str, given: Mapping[str, Path] | None = None) -> Environment:
    """The environment of a host: the one given, else this one, else that of tox in this clone, which is made if need be.

    Raises:
        EFAError: none is there and none can be made, or the one given lacks the host.
    """
    if given and host in given:
        found = _installed(host, given[host])
        if found is None:
            raise EFAError(f"{given[host]} has no {DISTRIBUTIONS[host]}: give the Python of an environment with {host}.")
        return found
    here = _here(host) or _installed(host, _of_tox(host))
    return here or _made(host)


def _here(host: str) -> Environment | None:
    try:
        return Environment(host, Path(sys.executable), version(DISTRIBUTIONS[host]))
    except PackageNotFoundError:
        return None


def _of_tox(host: str) -> Path:
    return ROOT / ".tox" / host / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


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
    if not (ROOT / "tox.ini").exists():
        raise EFAError(f"no environment has {DISTRIBUTIONS[host]}, and outside a clone of efa_addons none is made: {advice}")
    if find_spec("tox") is None:
        raise EFAError(f"no environment has {DISTRIBUTIONS[host]}, and tox, which would make one, is not installed: {advice}")
    print(f"making an environment with {DISTRIBUTIONS[host]}, by tox …", flush=True)
    # its tests are not run, but what goes before them is, and that installs SchNetPack
    done = subprocess.run(
        [sys.executable, "-m", "tox", "-e", host, "--", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    found = _installed(host, _of_tox(host))
    if done.returncode or found is None:
        raise EFAError(f"tox could not make an environment with {host}:\n{(done.stdout + done.stderr)[-2000:]}\n{advice}")
    return found
