"""PaiNN in the demonstration: SchNetPack's `spktrain` on the experiment painn.yaml beside this file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pytorch_lightning.callbacks import Callback

from efa_addons.studies import cumulene
from efa_addons.studies.hosts import Training, Variant, script
from efa_addons.studies.hosts.epochs import EpochRecord, epochs_done, seconds_per_epoch

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

__all__ = ["epochs_done", "seconds_per_epoch"]

LABEL, DISTRIBUTION = "PaiNN", "schnetpack"
COMMAND = (script("spktrain"),)
CONFIG = "experiment/cumulene.yaml"
CUTOFF = 3.0  # Å, as in painn.yaml

EPOCHS, QUICK_EPOCHS = 80, 2
QUICK = ("model.representation.n_atom_basis=8",)
VALIDATION = 0.1  # of the training file

WITHOUT_EFA = ("model/representation=painn", "~model.representation.efa")
VARIANTS = (Variant("painn", "PaiNN", "plain", WITHOUT_EFA), Variant("painn_efa", "PaiNN + EFA", "efa"))


class EpochTimes(EpochRecord, Callback):
    """For `callbacks` in painn.yaml."""


def training(quick: bool, seed: int) -> Training:
    epochs = QUICK_EPOCHS if quick else EPOCHS
    flags = (f"seed={seed}", f"trainer.max_epochs={epochs}", *(QUICK if quick else ()))
    config = files("efa_addons.studies.hosts").joinpath("painn.yaml").read_text(encoding="utf-8")
    return Training(flags, epochs, {CONFIG: config})


def prepare(folder: Path, train_file: Path) -> None:
    """The structures as SchNetPack reads them, and the split: left to spktrain it would differ between the variants."""
    from schnetpack.data import ASEAtomsData

    structures = cumulene.read(train_file.parent, train_file.stem)
    database = ASEAtomsData.create(
        str(folder / "train.db"), distance_unit="Ang", property_unit_dict={"energy": "eV", "forces": "eV/Ang"}
    )
    properties = [
        {"energy": np.array([atoms.info[cumulene.ENERGY]]), "forces": atoms.arrays[cumulene.FORCES]} for atoms in structures
    ]
    database.add_systems(property_list=properties, atoms_list=structures)
    order = np.random.default_rng(0).permutation(len(structures))
    num = max(1, round(VALIDATION * len(structures)))
    # spktrain ends with a test and wants structures for it: the validation set, for our own test set is a file apart
    np.savez(folder / "split.npz", val_idx=order[:num], test_idx=order[:num], train_idx=order[num:])


def command(name: str, folder: Path, train_file: Path, flags: tuple[str, ...]) -> list[str]:
    paths = (f"data.datapath={folder}/train.db", f"data.split_file={folder}/split.npz")
    return [
        *(*COMMAND, "--config-dir", str(folder), "experiment=cumulene"),
        *(f"hydra.run.dir={folder}", f"run.work_dir={folder}", f"run.id={name}", *paths, *flags),
    ]


def model_file(name: str, folder: Path) -> Path:
    return folder / "best_model"


def calculator(path: Path) -> tuple[Calculator, int]:
    """In float64, so that profiles carry no noise."""
    import torch
    from schnetpack.interfaces import SpkCalculator
    from schnetpack.transform import ASENeighborList

    from efa_addons.hosts.painn import load

    model = load(path).double()
    found = SpkCalculator(model, ASENeighborList(cutoff=CUTOFF), energy_unit="eV", position_unit="Ang", dtype=torch.float64)
    return found, sum(p.numel() for p in model.parameters())
