"""A MACE model as plain values and back."""

from __future__ import annotations

import warnings
from typing import Any

import mace
import numpy as np
import torch
from mace import modules
from mace.modules.models import ScaleShiftMACE
from mace.tools.scripts_utils import extract_config_mace_model
from torch import nn

from efa_addons._e3nn import Irreps
from efa_addons.config import EFAConfig
from efa_addons.dtype import default_dtype
from efa_addons.errors import EFAError
from efa_addons.hosts.mace.insert import efa_config, has_efa, insert_efa, strip_efa
from efa_addons.hosts.mace.probe import energies, probe
from efa_addons.portable import PortableModel

_REGISTRIES = (modules.interaction_classes, modules.readout_classes, modules.gate_dict)


def to_portable(model: nn.Module) -> PortableModel:
    """All there is to a model, after a check that the same model can be built from it.

    Raises:
        EFAError: the model cannot be rebuilt exactly from MACE's own description of it.
    """
    stock = strip_efa(model) if has_efa(model) else model
    if type(stock) is not ScaleShiftMACE:
        raise EFAError(f"the portable format holds a ScaleShiftMACE, got {type(stock).__name__}.")
    for module in stock.modules():
        for kind in ("cueq", "oeq"):
            if getattr(getattr(module, f"{kind}_config", None), "enabled", False):
                raise EFAError(
                    f"the portable format holds e3nn models, and this one is for {kind}: convert it back first "
                    f"(mace.cli.convert_{kind}_e3nn)."
                )
    try:
        described = extract_config_mace_model(stock)
    except AttributeError as error:  # for example with --radial_type gaussian
        raise EFAError(f"MACE cannot describe this model ({error}): keep the .model file.") from error
    settings = {name: _plain(name, value) for name, value in described.items()}
    settings["avg_num_neighbors_of_layers"] = [_plain("", block.avg_num_neighbors) for block in stock.interactions]
    config = efa_config(model)
    state = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
    portable = PortableModel("mace", mace.__version__, settings, None if config is None else config.to_dict(), state)
    _refuse_another_model(model, portable)
    return portable


def from_portable(portable: PortableModel) -> nn.Module:
    """The model, built by the installed MACE, on the CPU."""
    settings = {name: _own(name, value) for name, value in portable.host_config.items()}
    neighbors = settings.pop("avg_num_neighbors_of_layers")
    state = portable.state_dict
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    with default_dtype(dtype), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # MACE and TorchScript about themselves
        model: nn.Module = ScaleShiftMACE(**settings)
        for block, number in zip(model.interactions, neighbors, strict=True):
            block.avg_num_neighbors = number
        if portable.efa_config is not None:
            model = insert_efa(model, EFAConfig.from_dict(portable.efa_config))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise EFAError(
            f"mace-torch {mace.__version__} builds a model to which these weights, written by mace-torch "
            f"{portable.host_version}, do not belong: {error}"
        ) from error
    return model


def _refuse_another_model(model: nn.Module, portable: PortableModel) -> None:
    """MACE's description of a model need not be complete; a file that gives another model must not be written."""
    expected, found = energies(model, probe(model)), energies(from_portable(portable), probe(model))
    if not torch.allclose(expected, found, rtol=1e-5, atol=1e-5):
        raise EFAError(
            f"this model cannot be rebuilt from MACE's description of it (energies of a probe: {expected.tolist()} and "
            f"{found.tolist()} eV): keep the .model file."
        )


def _plain(name: str, value: Any) -> Any:
    """Numbers, text, lists and tensors for what MACE's constructor takes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Irreps):
        return str(value)
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [_plain(name, entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(name, entry) for key, entry in value.items()}
    for registry in _REGISTRIES:
        for key, entry in registry.items():
            if entry is value:
                return key
    raise EFAError(f"the portable format has no form for {name}={value!r}: keep the .model file.")


def _own(name: str, value: Any) -> Any:
    """`_plain` undone for what needs it."""
    if isinstance(value, str):
        if name.endswith("_irreps"):
            return Irreps(value)
        registry = {"interaction_cls": 0, "interaction_cls_first": 0, "readout_cls": 1, "gate": 2}.get(name)
        return value if registry is None else _REGISTRIES[registry][value]
    if name in ("atomic_energies", "atomic_inter_scale", "atomic_inter_shift") and isinstance(value, torch.Tensor):
        return value.numpy()
    return value
