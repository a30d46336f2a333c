"""EFA in and out of a MACE model: `insert_efa`, `strip_efa`, `without_efa`."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager

import torch
from mace.modules.models import ScaleShiftMACE
from mace.modules.wrapper_ops import get_layout
from torch import nn

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts import base
from efa_addons.hosts.mace.model import MACEEFA, EFAScaleShiftMACE


def has_efa(model: nn.Module) -> bool:
    """True for a MACE model that carries EFA blocks."""
    return isinstance(model, EFAScaleShiftMACE)


def efa_config(model: nn.Module) -> EFAConfig | None:
    """The settings of a model's EFA blocks; None without."""
    return EFAConfig.from_dict(model.efa_config) if has_efa(model) else None


def efa_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the EFA blocks by their names in the model."""
    return base.parameters_of(model, efa_layers(model))


def efa_layers(model: nn.Module) -> dict[str, base.LayerWithEFA]:
    """The layers with EFA: layer0, layer1, …"""
    return {
        f"layer{i}": base.LayerWithEFA(product.efa.block, product.efa, product)
        for i, product in enumerate(getattr(model, "products", []))
        if hasattr(product, "efa")
    }


def insert_efa(model: nn.Module, config: EFAConfig, seed: int | None = None, inplace: bool = False) -> nn.Module:
    """A copy of a MACE model with zero-initialised EFA blocks: its energies, forces and stress are the same to the last bit.

    Args:
        model: a ScaleShiftMACE (what `mace_run_train` makes and foundation models are).
        config: settings; max_length must be a number, in Å (`EFAConfig.resolve` where it is 'auto').
        seed: seed of the inner weights; none given: torch's generator. The global generator is left where it was.
        inplace: change `model` itself. A model for torch.compile (from mace.tools.compile.prepare) needs it, because copying
            turns e3nn's code into TorchScript, which torch.compile cannot trace.

    Raises:
        EFAError: another kind of model, a model that has EFA already, or a layer that does not exist.
    """
    base.refuse_a_second(has_efa(model))
    if type(model) is not ScaleShiftMACE:
        raise EFAError(
            f"EFA goes into a ScaleShiftMACE, got {type(model).__name__}"
            + (
                ": give the .model file, not the _compiled.model."
                if isinstance(model, torch.jit.ScriptModule)
                else ": train with --model ScaleShiftMACE or MACE, or give a model that was."
            )
        )
    layers = base.chosen_layers(config, len(model.products))
    model = model if inplace else copy.deepcopy(model)
    like = next(model.parameters())
    with base.building(like, seed):
        for layer in layers:
            irreps_in = model.interactions[layer].node_feats_irreps
            irreps_out = model.products[layer].linear.irreps_out
            block = MACEEFA(str(irreps_in), str(irreps_out), config, layout_of(model), checks=layer == layers[0])
            model.products[layer].efa = block.to(like.device)
    model.__class__ = EFAScaleShiftMACE
    model.efa_config = config.to_dict()
    return model


def layout_of(model: nn.Module) -> str:
    """Order of the features between layers: "ir_mul" in a model for cuEquivariance, otherwise "mul_ir"."""
    return get_layout(getattr(model.products[0], "cueq_config", None))


def strip_efa(model: nn.Module) -> nn.Module:
    """A copy of a model without its EFA blocks: a stock ScaleShiftMACE. Energies change unless the blocks were untrained."""
    base.require_efa(model, has_efa(model), "take out")
    model = copy.deepcopy(model)
    for product in model.products:
        if hasattr(product, "efa"):
            del product.efa
    model.__class__ = ScaleShiftMACE
    del model.efa_config
    return model


def graft_from(model: nn.Module, source: nn.Module) -> nn.Module:
    """A stock model, which is changed in place, with the EFA blocks of `source`, weights included."""
    config = efa_config(source)
    base.require_efa(source, config is not None, "take over")
    grafted = insert_efa(model, config, inplace=True)
    weights = efa_parameters(source)
    with torch.no_grad():
        for name, parameter in efa_parameters(grafted).items():
            parameter.copy_(weights[name])
    return grafted


def without_efa(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts the model computes without its EFA blocks: the difference is what they contribute.

    with without_efa(model):
        local = model(data)["energy"]
    """
    base.require_efa(model, has_efa(model), "switch off")
    return base.switched_off(efa_layers(model))
