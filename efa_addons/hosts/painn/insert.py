"""EFA in and out of a SchNetPack model with PaiNN: `insert_efa`, `strip_efa`, `without_efa`."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
from schnetpack.representation import PaiNN
from torch import nn

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts import base
from efa_addons.hosts.painn import model as painn_model
from efa_addons.hosts.painn.model import PaiNNEFA, attach


def representation_of(model: nn.Module) -> nn.Module:
    """The representation of a SchNetPack model, or the model itself where it is one."""
    return getattr(model, "representation", model)


def has_efa(model: nn.Module) -> bool:
    """True for a model whose PaiNN carries EFA blocks."""
    return isinstance(representation_of(model), PaiNNEFA)


def efa_config(model: nn.Module) -> EFAConfig | None:
    """The settings of a model's EFA blocks; None without."""
    return EFAConfig.from_dict(representation_of(model).efa_config) if has_efa(model) else None


def efa_layers(model: nn.Module) -> dict[str, base.LayerWithEFA]:
    """The layers with EFA: layer0, layer1, …"""
    return painn_model.efa_layers(representation_of(model)) if has_efa(model) else {}


def efa_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the EFA blocks by their names in the model."""
    return base.parameters_of(model, efa_layers(model))


def insert_efa(model: nn.Module, config: EFAConfig, seed: int | None = None) -> nn.Module:
    """A copy of a model with zero-initialised EFA blocks: its energies, forces and stress are the same to the last bit.

    Args:
        model: a SchNetPack model (what spktrain saves as best_model) with PaiNN as its representation, or a PaiNN.
        config: settings; max_length in the unit of the model's positions, usually Å.
        seed: seed of the inner weights; none given: torch's generator. The global generator is left where it was.

    Raises:
        EFAError: another representation, a model that has EFA already, or a layer that does not exist.
    """
    base.refuse_a_second(has_efa(model))
    found = representation_of(model)
    if type(found) is not PaiNN:
        kind = f"a model with {type(found).__name__}" if found is not model else f"a {type(model).__name__}"
        hint = ": give best_model, not the deployed one." if isinstance(model, torch.jit.ScriptModule) else "."
        raise EFAError(f"EFA goes into a SchNetPack model with PaiNN as its representation, got {kind}{hint}")
    model = copy.deepcopy(model)
    painn = representation_of(model)
    attach(painn, config, seed)
    painn.__class__ = PaiNNEFA
    return model


def strip_efa(model: nn.Module) -> nn.Module:
    """A copy of a model without its EFA blocks: a stock PaiNN. Energies change unless the blocks were untrained."""
    base.require_efa(model, has_efa(model), "take out")
    model = copy.deepcopy(model)
    painn = representation_of(model)
    for mixing in painn.mixing:
        if hasattr(mixing, "efa"):
            del mixing.efa
    painn.__class__ = PaiNN
    for name in ("efa_config", "finetuning"):
        painn.__dict__.pop(name, None)
    return model.requires_grad_(True)  # freeze_base may have frozen what is left


def without_efa(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts the model computes without its EFA blocks: the difference is what they contribute.

    with without_efa(model):
        local = model(inputs)["energy"]
    """
    base.require_efa(model, has_efa(model), "switch off")
    return base.switched_off(efa_layers(model))
