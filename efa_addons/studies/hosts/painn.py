"""PaiNN in studies: SchNetPack's `spktrain` on the experiment painn.yaml beside this file, or on what a study makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from pytorch_lightning.callbacks import Callback
from schnetpack.transform import Transform
from schnetpack.utils import load_model
from torch import Tensor, nn
from torch.utils.data import Dataset

from efa_addons.hosts.painn.finetune import Base
from efa_addons.studies import cumulene
from efa_addons.studies.hosts import DISTRIBUTIONS, LABELS, Training, Variant, decay, override, script, valid_file
from efa_addons.studies.hosts.epochs import EpochRecord, curve, epochs_done, seconds_per_epoch

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from efa_addons.studies.study import ModelSettings, TrainingSettings

__all__ = ["curve", "epochs_done", "seconds_per_epoch"]

LABEL, DISTRIBUTION = LABELS["painn"], DISTRIBUTIONS["painn"]
COMMAND = (script("spktrain"),)
CONFIG = "experiment/cumulene.yaml"
HEAD = "# @package _global_\n"  # a comment that Hydra reads

EPOCHS, QUICK_EPOCHS = 80, 2
QUICK = ("model.representation.n_atom_basis=8",)
VALIDATION = 0.1  # of the training file

PLAIN = {"override /model/representation": "painn"}
WITHOUT_EFA = ("model/representation=painn", "~model.representation.efa")
VARIANTS = (Variant("painn", "PaiNN", "plain", WITHOUT_EFA), Variant("painn_efa", "PaiNN + EFA", "efa"))


class EpochTimes(EpochRecord, Callback):
    """For `callbacks` in painn.yaml."""

    METRICS = {"energy_mae": "val_energy_mae", "force_mae": "val_forces_mae"}


class InMemory(Callback):
    """For `callbacks` in painn.yaml: structures and neighbors are read once, not from the database again in every epoch."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        data = trainer.datamodule
        data._train_dataset, data._val_dataset = Kept(data._train_dataset), Kept(data._val_dataset)
        data._train_dataloader = data._val_dataloader = None  # they were made for the statistics, and are made again


class Kept(Dataset):
    """A data set whose items never change, and stay in memory."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.items: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index not in self.items:
            self.items[index] = self.dataset[index]
        return dict(self.items[index])


def training(quick: bool, seed: int) -> Training:
    epochs = QUICK_EPOCHS if quick else EPOCHS
    flags = (f"seed={seed}", f"trainer.max_epochs={epochs}", *(QUICK if quick else ()))
    return Training(flags, epochs, {CONFIG: _template()})


def settings(
    model: ModelSettings,
    training: TrainingSettings,
    efa: Mapping[str, Any] | None,
    seed: int,
    elements: Sequence[str],
    device: str,
    base: Path | None = None,
) -> Training:
    """The demonstration's, with sizes, epochs and learning rate of a study."""
    config = yaml.safe_load(_template())
    config["globals"] |= {"cutoff": model.cutoff, "lr": training.lr}
    config["seed"] = seed
    config["data"]["batch_size"] = training.batch_size
    config["trainer"] |= {"max_epochs": training.num_epochs, "accelerator": device if device == "cpu" else "gpu"}
    config["task"]["scheduler_args"]["gamma"] = decay(training.num_epochs)
    representation = config["model"]["representation"]
    representation |= {"n_atom_basis": model.num_features, "n_interactions": model.num_layers}
    if base is not None:
        config["defaults"] = [
            {"override /model": "efa_finetune"} if "override /model" in entry else entry
            for entry in config["defaults"]
            if "override /model/representation" not in entry
        ]
        config["model"] = {"path": str(base), "efa": None if efa is None else dict(efa), "seed": seed}
        if efa is None:
            config["model"]["_target_"] = f"{__name__}.without_efa"
    elif efa is None:
        del representation["efa"]
        config["defaults"] = [{**entry, **PLAIN} if PLAIN.keys() & entry.keys() else entry for entry in config["defaults"]]
    else:
        representation["efa"] = dict(efa)
    return Training((), training.num_epochs, {CONFIG: HEAD + yaml.safe_dump(config, sort_keys=False)})


class KeepsOffsets(Transform):
    """Makes the data lose what a base model adds to its energies, as for a model with EFA."""

    is_postprocessor = True

    def __init__(self, base: Base) -> None:
        super().__init__()
        self.base: Base | None = base

    def datamodule(self, value: Any) -> None:
        if self.base is not None:
            self.base.prepare(value)
            self.base = None

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return inputs


def without_efa(path: str, efa: None = None, seed: int = 0, **experiment: Any) -> nn.Module:
    """A trained model to be trained further as it is: the control of `efa_addons.hosts.painn.InsertEFA`."""
    model = load_model(path)
    model.postprocessors.append(KeepsOffsets(Base.of(model, Path(path))))
    return model


def _template() -> str:
    return files("efa_addons.studies.hosts").joinpath("painn.yaml").read_text(encoding="utf-8")


def prepare(folder: Path, train_file: Path) -> None:
    """The structures as SchNetPack reads them, and the split: left to spktrain it would differ between the variants."""
    from schnetpack.data import ASEAtomsData

    structures = cumulene.read(train_file.parent, train_file.stem)
    num_train, valid = len(structures), valid_file(train_file)
    if valid is not None:
        structures = [*structures, *cumulene.read(valid.parent, valid.stem)]
    database = ASEAtomsData.create(
        str(folder / "train.db"), distance_unit="Ang", property_unit_dict={"energy": "eV", "forces": "eV/Ang"}
    )
    properties = [
        {"energy": np.array([atoms.info[cumulene.ENERGY]]), "forces": atoms.arrays[cumulene.FORCES]} for atoms in structures
    ]
    database.add_systems(property_list=properties, atoms_list=structures)
    if valid is not None:
        validated, trained = np.split(np.arange(len(structures))[::-1], [len(structures) - num_train])
    else:
        order = np.random.default_rng(0).permutation(num_train)
        validated, trained = np.split(order, [max(1, round(VALIDATION * num_train))])
    # spktrain ends with a test and wants structures for it: the validation set, for our own test set is a file apart
    np.savez(folder / "split.npz", val_idx=validated, test_idx=validated, train_idx=trained)


def command(name: str, folder: Path, train_file: Path, flags: tuple[str, ...]) -> list[str]:
    paths = (override("data.datapath", folder / "train.db"), override("data.split_file", folder / "split.npz"))
    folders = (override("hydra.run.dir", folder), override("run.work_dir", folder))
    return [
        *(*COMMAND, "--config-dir", str(folder), "experiment=cumulene"),
        *(*folders, f"run.id={name}", *paths, *flags),
    ]


def model_file(name: str, folder: Path) -> Path:
    return folder / "best_model"


def calculator(path: Path, device: str = "cpu") -> tuple[Calculator, int]:
    """In float64, so that profiles carry no noise."""
    import torch
    from schnetpack.interfaces import SpkCalculator
    from schnetpack.transform import ASENeighborList

    from efa_addons.hosts.painn import load

    model = load(path).double()
    representation: Any = model.representation
    neighbors = ASENeighborList(cutoff=float(representation.cutoff))
    found = SpkCalculator(model, neighbors, energy_unit="eV", position_unit="Ang", dtype=torch.float64, device=device)
    return found, sum(p.numel() for p in model.parameters())
