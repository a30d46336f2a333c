"""NequIP in the demonstration: `nequip-train` on the configuration nequip.yaml beside this file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch.callbacks import Callback

from efa_addons.studies.hosts import Training, Variant, script
from efa_addons.studies.hosts.epochs import EpochRecord, epochs_done, seconds_per_epoch

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

__all__ = ["epochs_done", "seconds_per_epoch"]

LABEL, DISTRIBUTION = "NequIP", "nequip"
COMMAND = (script("nequip-train"),)
CONFIG = "nequip.yaml"

EPOCHS, QUICK_EPOCHS = 60, 2
QUICK = ("training_module.model.num_features=4",)

WITHOUT_EFA = ("training_module.model._target_=nequip.model.NequIPGNNModel", "~training_module.model.efa")
VARIANTS = (Variant("nequip", "NequIP", "plain", WITHOUT_EFA), Variant("nequip_efa", "NequIP + EFA", "efa"))


class EpochTimes(EpochRecord, Callback):
    """For `trainer.callbacks` in nequip.yaml."""


def training(quick: bool, seed: int) -> Training:
    epochs = QUICK_EPOCHS if quick else EPOCHS
    flags = (f"seed={seed}", f"trainer.max_epochs={epochs}", *(QUICK if quick else ()))
    config = files("efa_addons.studies.hosts").joinpath(CONFIG).read_text(encoding="utf-8")
    return Training(flags, epochs, {CONFIG: config})


def prepare(folder: Path, train_file: Path) -> None:
    """Nothing: it reads extended XYZ."""


def command(name: str, folder: Path, train_file: Path, flags: tuple[str, ...]) -> list[str]:
    config = CONFIG.removesuffix(".yaml")
    return [*COMMAND, "-cp", str(folder), "-cn", config, f"hydra.run.dir={folder}", f"data_file={train_file}", *flags]


def model_file(name: str, folder: Path) -> Path:
    return folder / "last.ckpt"


def calculator(path: Path) -> tuple[Calculator, int]:
    from efa_addons.hosts.nequip import NequIPEFACalculator

    found = NequIPEFACalculator._from_saved_model(str(path), device="cpu", chemical_species_to_atom_type_map=True)
    return found, sum(p.numel() for p in found.model.parameters())
