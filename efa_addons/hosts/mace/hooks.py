"""What MACE's training script must know about EFA, as wrappers around three of its functions.

Each wrapper calls the original; without EFA in the arguments or the model the result is the original's, bit for bit. They
are put where MACE looks the functions up, so that the stock `mace_run_train` serves a model with EFA, too.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from mace.calculators.lammps_mace import LAMMPS_MACE
from mace.tools import model_script_utils, scripts_utils

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts.mace.insert import describe, efa_config, efa_parameters, graft_from, has_efa, insert_efa, strip_efa
from efa_addons.hosts.mace.options import TrainingOptions
from efa_addons.nn.checks import largest_distance


def _configure_model(original: Callable) -> Callable:
    """Builds the stock model, then inserts new EFA blocks or carries over those of the foundation model."""

    @functools.wraps(original)
    def configure_model(args, train_loader, atomic_energies, model_foundation=None, *rest, **options):
        wanted: EFAConfig | None = getattr(args, "efa_config", None)
        carried = model_foundation is not None and has_efa(model_foundation)
        stock_foundation = strip_efa(model_foundation) if carried else model_foundation
        model, output_args = original(args, train_loader, atomic_energies, stock_foundation, *rest, **options)
        if carried:
            _refuse_other_settings(wanted, efa_config(model_foundation))
            model = graft_from(model, model_foundation)
        elif wanted is not None:
            model = insert_efa(model, resolve_from(wanted, train_loader.dataset), seed=args.seed)
        if has_efa(model):
            logging.info(describe(model))
            if _training(args).freeze_base:
                trained = {id(p) for p in efa_parameters(model).values()}
                for parameter in model.parameters():
                    parameter.requires_grad_(id(parameter) in trained)
        return model, output_args

    return configure_model


def _get_params_options(original: Callable) -> Callable:
    """Gives EFA a parameter group of its own: learning-rate factor, weight decay, and no part in `--freeze`."""

    @functools.wraps(original)
    def get_params_options(args, model):
        param_options = original(args, model)
        if not has_efa(model):
            return param_options
        training = _training(args)
        new = list(efa_parameters(model).values())
        ids = {id(p) for p in new}
        for group in param_options["params"]:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        for parameter in new:
            parameter.requires_grad_(True)
        decay = args.weight_decay if training.weight_decay is None else training.weight_decay
        param_options["params"].append(
            {"name": "efa", "params": new, "weight_decay": decay, "lr": training.lr_factor * args.lr}
        )
        return param_options

    return get_params_options


def _remove_pt_head(original: Callable) -> Callable:
    """Selects a head of the stock part; EFA serves all heads alike."""

    @functools.wraps(original)
    def remove_pt_head(model, *rest, **options):
        if not has_efa(model):
            return original(model, *rest, **options)
        return graft_from(original(strip_efa(model), *rest, **options), model)

    return remove_pt_head


def _refuse_lammps(original: Callable) -> Callable:
    """pair_mace passes ghost atoms along with the local ones, and EFA would attend to both: no silent wrong energies."""

    @functools.wraps(original)
    def __init__(self, model, **options):
        if has_efa(model):
            raise EFAError("LAMMPS export of a model with EFA is not supported yet: ghost atoms would be counted as atoms.")
        original(self, model, **options)

    return __init__


_WRAPPERS = {
    "configure_model": (model_script_utils, _configure_model),
    "get_params_options": (scripts_utils, _get_params_options),
    "remove_pt_head": (scripts_utils, _remove_pt_head),
}


def install() -> None:
    """Puts the wrappers into every MACE module that holds the originals, also into a script that runs as __main__."""
    if not getattr(LAMMPS_MACE.__init__, "_efa_addons", False):
        LAMMPS_MACE.__init__ = _refuse_lammps(LAMMPS_MACE.__init__)
        LAMMPS_MACE.__init__._efa_addons = True
    for name, (home, wrap) in _WRAPPERS.items():
        original = getattr(home, name)
        if getattr(original, "_efa_addons", False):
            continue
        wrapped: Any = wrap(original)
        wrapped._efa_addons = True
        for module in list(sys.modules.values()):
            known = getattr(module, "__name__", "").partition(".")[0] in ("mace", "__main__")
            if known and getattr(module, name, None) is original:
                setattr(module, name, wrapped)


def resolve_from(config: EFAConfig, dataset: Any) -> EFAConfig:
    """Replaces 'auto' settings by numbers from a MACE data set (a sequence of AtomicData)."""
    if not config.needs_data:
        return config
    largest, atoms = 0.0, 0
    for i in range(len(dataset)):
        positions = dataset[i].positions
        atoms += positions.shape[0]
        one_graph = torch.zeros(positions.shape[0], dtype=torch.long)
        largest = max(largest, largest_distance(positions, one_graph))
    return config.resolve(largest, atoms / max(len(dataset), 1))


def _training(args: Any) -> TrainingOptions:
    return getattr(args, "efa_training", None) or TrainingOptions()


def _refuse_other_settings(wanted: EFAConfig | None, carried: EFAConfig) -> None:
    """The EFA of a foundation model is taken as it is: different settings would silently drop trained weights."""
    if wanted is None:
        return
    given, kept = wanted.to_dict(), carried.to_dict()
    default = EFAConfig().to_dict()
    changed = [f"{k}: {given[k]} (the model has {kept[k]})" for k in given if given[k] not in (default[k], kept[k])]
    if changed:
        raise EFAError(
            f"the foundation model has EFA with other settings: {'; '.join(changed)}. Leave these options out to go on with "
            "its EFA, or take it out first with `efa-addons strip`."
        )
