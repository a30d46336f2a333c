"""What studies must know of a host, in one module per host: how to train and load its models, and how far a run is.

A host's module imports the host; `load` says what to install where it is missing.
"""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from efa_addons.errors import unknown_names
from efa_addons.studies import cumulene

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from efa_addons.studies.study import ModelSettings, TrainingSettings

# name (also that of the extra and of the module here) -> package
PACKAGES = {"mace": "mace", "nequip": "nequip", "painn": "schnetpack"}
NAMES = tuple(PACKAGES)
# name -> distribution, whose version decides what is trained
DISTRIBUTIONS = {"mace": "mace-torch", "nequip": "nequip", "painn": "schnetpack"}
LABELS = {"mace": "MACE", "nequip": "NequIP", "painn": "PaiNN"}
# name -> what its training and its calculator import, beside the module here
IMPORTED = {
    "mace": ("mace.cli.run_train", "mace.calculators"),
    "nequip": ("nequip.scripts.train", "nequip.data.datamodule", "nequip.train", "efa_addons.hosts.nequip"),
    "painn": ("schnetpack.cli", "schnetpack.interfaces", "efa_addons.hosts.painn"),
}


@dataclass(frozen=True)
class Variant:
    """One model of the comparison.

    Args:
        name: of its folder and its files.
        label: in the table.
        kind: what the picture draws alike for all hosts: "plain", "efa" or "scalar".
        flags: arguments in addition to those of all variants.
    """

    name: str
    label: str
    kind: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """How a host trains: arguments of its command (without paths), and YAML files for a run's folder (name -> text)."""

    flags: tuple[str, ...]
    num_epochs: int
    files: Mapping[str, str] = field(default_factory=dict)


class Host(Protocol):
    """The names in a host's module."""

    LABEL: str
    DISTRIBUTION: str
    VARIANTS: tuple[Variant, ...]

    def training(self, quick: bool, seed: int) -> Training:
        """Of the demonstration, the same for all its variants; `quick` runs every step and learns nothing."""

    def settings(
        self,
        model: ModelSettings,
        training: TrainingSettings,
        efa: Mapping[str, Any] | None,
        seed: int,
        elements: Sequence[str],
        device: str,
        base: Path | None = None,
    ) -> Training:
        """Of a study.

        Args:
            efa: options of EFAConfig, none: without.
            elements: symbols of all that occurs in the data.
            device: "cpu" or "cuda".
            base: a trained model without EFA to go on from, in the folder of its training; its sizes count, and it knows all
                `elements`; none: from scratch.
        """

    def prepare(self, folder: Path, train_file: Path) -> None:
        """Makes whatever else the command needs in `folder`."""

    def command(self, name: str, folder: Path, train_file: Path, flags: tuple[str, ...]) -> list[str]:
        """The host's own command that trains model `name` in `folder`, which exists.

        A valid.xyz beside the training file is what it validates on; without one it takes a share of the training file.
        """

    def model_file(self, name: str, folder: Path) -> Path:
        """What the command leaves when it succeeds."""

    def calculator(self, path: Path, device: str = "cpu") -> tuple[Calculator, int]:
        """ASE calculator (eV, Å) of a model file on "cpu" or "cuda", and the model's number of parameters."""

    def epochs_done(self, folder: Path) -> int:
        """Number of epochs that a run has finished so far."""

    def seconds_per_epoch(self, folder: Path) -> float:
        """Mean wall time (s) of an epoch's training steps; NaN before the first."""

    def curve(self, folder: Path) -> list[dict[str, float]]:
        """For each validation: epoch (from 1), seconds of training steps so far, energy_mae (eV), force_mae (eV/Å)."""


def load(name: str) -> Host:
    """The module of a host, or an ImportError that says what to install."""
    if name not in PACKAGES:
        raise unknown_names("host", [name], NAMES)
    cumulene.require(PACKAGES[name], name)
    return importlib.import_module(f"efa_addons.studies.hosts.{name}")


def valid_file(train_file: Path) -> Path | None:
    """The validation set beside a training set, if there is one."""
    path = train_file.with_name("valid.xyz")
    return path if path.exists() else None


def decay(num_epochs: int) -> float:
    """The factor for each epoch with which a learning rate ends at 2 % of what it began with."""
    return 0.02 ** (1 / num_epochs)


def override(key: str, path: Path) -> str:
    """A path for Hydra, quoted where its grammar would not take it as it is."""
    text = str(path)
    if not re.fullmatch(r"[\w/.+-]+", text, re.ASCII):
        text = "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"
    return f"{key}={text}"


def script(name: str) -> str:
    """The path of a host's command: beside this interpreter, or else as the shell finds it."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name
