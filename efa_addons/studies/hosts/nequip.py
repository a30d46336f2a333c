"""NequIP in studies: `nequip-train` on the configuration nequip.yaml beside this file, or on what a study makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from lightning.pytorch.callbacks import Callback

from efa_addons.config import AUTO, EFAConfig
from efa_addons.studies.hosts import DISTRIBUTIONS, LABELS, Training, Variant, decay, override, script, valid_file
from efa_addons.studies.hosts.epochs import EpochRecord, curve, epochs_done, seconds_per_epoch

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from efa_addons.studies.study import ModelSettings, TrainingSettings

__all__ = ["curve", "epochs_done", "seconds_per_epoch"]

LABEL, DISTRIBUTION = LABELS["nequip"], DISTRIBUTIONS["nequip"]
COMMAND = (script("nequip-train"),)
CONFIG = "nequip.yaml"

EPOCHS, QUICK_EPOCHS = 60, 2
QUICK = ("training_module.model.num_features=4",)

WITHOUT_EFA = ("training_module.model._target_=nequip.model.NequIPGNNModel", "~training_module.model.efa")
VARIANTS = (Variant("nequip", "NequIP", "plain", WITHOUT_EFA), Variant("nequip_efa", "NequIP + EFA", "efa"))


class EpochTimes(EpochRecord, Callback):
    """For `trainer.callbacks` in nequip.yaml."""

    METRICS = {"energy_mae": "val0_epoch/total_energy_mae", "force_mae": "val0_epoch/forces_mae"}


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
    # types are numbered: those of a base stay its own, though the data have some of them only
    names = list(elements) if base is None else yaml.safe_load((base.parent / CONFIG).read_text())["model_type_names"]
    config |= {"model_type_names": names, "cutoff_radius": model.cutoff, "seed": seed}
    config["data"]["train_dataloader"]["batch_size"] = training.batch_size
    config["trainer"] |= {"max_epochs": training.num_epochs, "accelerator": device if device == "cpu" else "gpu"}
    module = config["training_module"]
    module["optimizer"]["lr"] = training.lr
    module["lr_scheduler"]["scheduler"]["gamma"] = decay(training.num_epochs)
    margin = EFAConfig.from_dict(efa or {}).max_length_margin
    config["data"]["stats_manager"]["max_length_margin"] = margin
    sizes = {"num_layers": model.num_layers, "l_max": model.max_degree, "num_features": model.num_features}
    module["model"] |= sizes
    if base is not None:
        module["model"] = {"_target_": "nequip.model.ModelFromCheckpoint", "checkpoint_path": str(base)}
        if efa is not None:
            options = {"seed": seed, "efa": _from_statistics(efa), "model": module["model"]}
            module["model"] = {"_target_": "efa_addons.hosts.nequip.InsertEFA", **options}
    elif efa is None:
        del module["model"]["efa"]
        module["model"]["_target_"] = "nequip.model.NequIPGNNModel"
    else:
        module["model"]["efa"] = _from_statistics(efa)
    return Training((), training.num_epochs, {CONFIG: yaml.safe_dump(config, sort_keys=False)})


def _from_statistics(efa: Mapping[str, Any]) -> dict[str, Any]:
    """EFA's options, where 'auto' stands for a statistic that NequIP takes of the training set."""
    options = dict(efa)
    for name, statistic in (("max_length", "max_length"), ("normalization", "num_atoms_mean")):
        if options.get(name, getattr(EFAConfig(), name)) == AUTO:
            options[name] = f"${{training_data_stats:{statistic}}}"
    return options


def _template() -> str:
    return files("efa_addons.studies.hosts").joinpath(CONFIG).read_text(encoding="utf-8")


def prepare(folder: Path, train_file: Path) -> None:
    """Nothing: it reads extended XYZ."""


def command(name: str, folder: Path, train_file: Path, flags: tuple[str, ...]) -> list[str]:
    config = CONFIG.removesuffix(".yaml")
    data = [override("data_file", train_file)]
    if (valid := valid_file(train_file)) is not None:
        data += ["~data.split_dataset", "+data.train_file_path=${data_file}", override("+data.val_file_path", valid)]
    return [*COMMAND, "-cp", str(folder), "-cn", config, override("hydra.run.dir", folder), *data, *flags]


def model_file(name: str, folder: Path) -> Path:
    return folder / "last.ckpt"


def calculator(path: Path, device: str = "cpu") -> tuple[Calculator, int]:
    """In the precision that the model was built and trained in, float32."""
    from efa_addons.hosts.nequip import NequIPEFACalculator

    found = NequIPEFACalculator._from_saved_model(str(path), device=device, chemical_species_to_atom_type_map=True)
    return found, sum(p.numel() for p in found.model.parameters())
