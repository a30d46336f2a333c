"""Training of one variant in a folder of its own, recognised when it is finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from efa_addons.errors import EFAError
from efa_addons.studies import forks
from efa_addons.studies.hosts import Host, Training, Variant
from efa_addons.version import __version__

LOG_TAIL = 20
STAMP = "stamp.json"


@dataclass(frozen=True, eq=False)
class Run:
    """A variant's training. `training` and the variant's flags exclude paths: they are what a finished run is recognised by."""

    host: Host
    variant: Variant
    folder: Path
    data: Path
    training: Training
    base: Path | None = None  # the model that it goes on from

    @property
    def flags(self) -> tuple[str, ...]:
        return (*self.training.flags, *self.variant.flags)

    @property
    def command(self) -> list[str]:
        return self.host.command(self.variant.name, self.folder, self.data / "train.xyz", self.flags)

    @property
    def model(self) -> Path:
        return self.host.model_file(self.variant.name, self.folder)

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def num_epochs(self) -> int:
        return self.training.num_epochs

    @property
    def stamp(self) -> dict[str, Any]:
        """What decides the trained model."""
        # what the files say: comments may change
        files = {name: digest(json.dumps(yaml.safe_load(text)).encode()) for name, text in self.training.files.items()}
        read = {"data": self.data / "train.xyz", "valid": self.data / "valid.xyz", "base": self.base}
        return {
            "flags": list(self.flags),
            "files": files,
            **{name: digest(path.read_bytes()) for name, path in read.items() if path is not None and path.exists()},
            "efa_addons": __version__,
            self.host.DISTRIBUTION: version(self.host.DISTRIBUTION),
        }

    def is_finished(self) -> bool:
        stamp = self.folder / STAMP
        return self.model.exists() and stamp.exists() and json.loads(stamp.read_text()) == self.stamp

    def start(self, threads: int) -> subprocess.Popen:
        """Empties the folder (hosts append to results they find) and starts training there."""
        self._prepare()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment.setdefault("PWD", os.getcwd())  # spktrain cannot do without, and not every caller has it
        with self.log.open("w") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def fork(self, threads: int) -> forks.Training:
        """The same in a fork of this process, whose variables name as many threads."""
        self._prepare()
        os.environ.setdefault("PWD", os.getcwd())
        with self.log.open("w") as log:
            return forks.Training(self.command, log, threads)

    def _prepare(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        for name, text in self.training.files.items():
            path = self.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.host.prepare(self.folder, self.data / "train.xyz")

    def finish(self, code: int) -> None:
        """Marks the run as finished, or raises with the end of its log."""
        if code or not self.model.exists():
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
            raise EFAError(
                f"training {self.variant.label} failed with exit code {code}. The command was:\n{' '.join(self.command)}\n"
                f"End of {self.log}:\n{tail}"
            )
        curve = self.host.curve(self.folder)
        if not curve:
            raise EFAError(f"the training left no record of validations in {self.folder}")
        if curve[-1]["epoch"] != self.num_epochs:  # hosts end without an error where losses are NaN
            raise EFAError(f"the training ended after {curve[-1]['epoch']} of {self.num_epochs} epochs, see {self.log}")
        (self.folder / STAMP).write_text(json.dumps(self.stamp, indent=2) + "\n")


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def split(data: Path) -> dict[str, str]:
    """A digest of each file of a folder of data."""
    return {path.stem: digest(path.read_bytes()) for path in sorted(data.glob("*.xyz"))}
