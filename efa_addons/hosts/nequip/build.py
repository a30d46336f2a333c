"""Targets for the `model:` part of a NequIP configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_method
from nequip.model import NequIPGNNModel
from torch import nn

from efa_addons.config import AUTO, EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts import base
from efa_addons.hosts.nequip.insert import efa_config, efa_layers, has_efa, insert_efa, strip_efa
from efa_addons.hosts.nequip.layer import MODES


def NequIPEFAModel(efa: Mapping[str, Any] | bool, mode: str = "parallel", **options: Any) -> nn.Module:
    """A fresh NequIP GNN with EFA.

    model:
      _target_: efa_addons.hosts.nequip.NequIPEFAModel
      efa: {max_length: 12.0}
      seed: 123
      …: all other options of nequip.model.NequIPGNNModel

    Args:
        efa: options of EFAConfig; false for the same model without EFA.
        mode: "parallel" or "sequential", see `EFALayer`.
        options: of NequIPGNNModel.
    """
    if efa is False:
        return NequIPGNNModel(**options)
    return insert_efa(NequIPGNNModel(**options), _config(efa), seed=options.get("seed"), mode=mode, inplace=True)


def InsertEFA(
    model: Mapping[str, Any],
    efa: Mapping[str, Any] | None = None,
    mode: str | None = None,
    freeze_base: bool = False,
    seed: int = 0,
) -> nn.Module:
    """EFA in the model that another target makes: from a checkpoint, a package, with modifiers, or fresh.

    A model that has EFA keeps it, weights and settings.

    model:
      _target_: efa_addons.hosts.nequip.InsertEFA
      efa: {max_length: 12.0}
      model:
        _target_: nequip.model.ModelFromPackage
        package_path: base.nequip.zip

    Args:
        model: a mapping with `_target_`, and the target's arguments.
        efa: options of EFAConfig; null for a model that has EFA.
        mode: "parallel" (the default) or "sequential", see `EFALayer`; null for a model that has EFA.
        freeze_base: train EFA alone.
        seed: of EFA's inner weights.

    Raises:
        EFAError: an unknown option, or other settings than those of a model that has EFA.
    """
    inserted = _build(model)
    if has_efa(inserted):
        _refuse_others(inserted, efa, mode)
    else:
        base.require_settings(efa)
        config = _config(efa)
        inserted = insert_efa(inserted, config, seed=seed, mode=MODES[0] if mode is None else mode, inplace=True)
    base.freeze_base(inserted, efa_layers(inserted), freeze_base)
    return inserted


def StripEFA(model: Mapping[str, Any]) -> nn.Module:
    """The model that another target makes, without its EFA."""
    return strip_efa(_build(model), inplace=True)


def _refuse_others(model: nn.Module, efa: Mapping[str, Any] | None, mode: str | None) -> None:
    base.refuse_other_settings(efa, efa_config(model))
    theirs = MODES[0] if all(layer.switch.parallel for layer in efa_layers(model).values()) else MODES[1]
    if mode not in (None, theirs):
        raise EFAError(f"the model has EFA in mode {theirs}, and mode is {mode}: leave it out.")


def _build(model: Mapping[str, Any]) -> nn.Module:
    # as nequip.model.modify does: not with Hydra's instantiate, which would build what is nested by itself
    if not isinstance(model, Mapping) or "_target_" not in model:
        raise EFAError(f"model must be a mapping with _target_, the model to put EFA into; got {model!r}.")
    options = dict(model)
    return get_method(options.pop("_target_"))(**options)


def _config(efa: Any) -> EFAConfig:
    if not isinstance(efa, Mapping):
        raise EFAError(f"efa must be a mapping of EFA options (of NequIPEFAModel also false, for none), got {efa!r}.")
    config = EFAConfig.from_dict(efa)
    for name, statistic in (("max_length", "max_length"), ("normalization", "num_atoms_mean")):
        if getattr(config, name) == AUTO:
            raise EFAError(
                f"{name}: auto waits for a training set, which NequIP's models do not see: give a number, or "
                f"{name}: ${{training_data_stats:{statistic}}} with stats_manager: "
                "{_target_: efa_addons.hosts.nequip.EFADataStatisticsManager}."
            )
    return config
