"""EFA in and out of a NequIP model."""

from __future__ import annotations

import copy
import re
import weakref
from contextlib import AbstractContextManager

from torch import nn

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts import base
from efa_addons.hosts.nequip.layer import MAX_LENGTH, MODES, EFALayer
from efa_addons.version import __version__

_LAYER = re.compile(r"layer(\d+)_convnet")
_COMPILED = "_compiled_cache"  # of NequIP's CompileGraphModel
# networks that blocks of a package were taken out of, in this process -> the version of efa_addons in the package
_stripped: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


def insert_efa(
    model: nn.Module, config: EFAConfig, seed: int | None = None, mode: str = "parallel", inplace: bool = False
) -> nn.Module:
    """A copy of a NequIP model with zero-initialised EFA blocks: energy, forces and stress are the same to the last bit.

    Args:
        model: a NequIP GNN (GraphModel), fresh, from a checkpoint or from a package, or a ModuleDict of them.
        config: settings; max_length and normalization must be numbers.
        seed: seed of the inner weights; none given: torch's generator. The global generator is left where it was.
        mode: "parallel" or "sequential", see `EFALayer`.
        inplace: change `model` itself.

    Raises:
        EFAError: another kind of model, a model that has EFA already, or a layer that does not exist.
    """
    if mode not in MODES:
        raise EFAError(f"mode must be {' or '.join(MODES)}, got '{mode}'.")
    base.refuse_a_second(has_efa(model))
    _refuse_code_of_a_package(model)
    model = model if inplace else copy.deepcopy(model)
    if isinstance(model, nn.ModuleDict):
        for single in model.values():
            insert_efa(single, config, seed, mode, inplace=True)
        return model
    network = network_of(model)
    names = layer_names(network)
    layers = base.chosen_layers(config, len(names))
    like = next(model.parameters())
    with base.building(like, seed):
        for layer in layers:
            local = network._modules[names[layer]]
            wrapped = EFALayer(local, config, mode, checks=layer == layers[0])
            network._modules[names[layer]] = wrapped.to(like.device)
    network.efa_config = config.to_dict()
    _note_max_length(model, str(float(config.max_length)))
    _forget_compiled(model)
    return model


def strip_efa(model: nn.Module, inplace: bool = False) -> nn.Module:
    """A copy of a model (or, `inplace`, itself) without its EFA blocks. Energies change unless the blocks were untrained."""
    base.require_efa(model, has_efa(model), "take out")
    model = model if inplace else copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if _is_layer(child):
                module._modules[name] = child.local
                if type(child).__module__.startswith("<torch_package"):
                    _stripped[module] = getattr(child.efa, "version", "unknown")
        if hasattr(module, "efa_config"):
            del module.efa_config
    _note_max_length(model, None)
    _forget_compiled(model)
    return model.requires_grad_(True)  # freeze_base may have frozen what is left


def has_efa(model: nn.Module) -> bool:
    """True for a NequIP model that carries EFA blocks, also one from a package."""
    return any(_is_layer(module) for module in model.modules())


def efa_config(model: nn.Module) -> EFAConfig | None:
    """The settings of a model's EFA blocks; None without."""
    for module in model.modules():
        if isinstance(getattr(module, "efa_config", None), dict):
            return EFAConfig.from_dict(module.efa_config)
    return None


def efa_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the EFA blocks by their names in the model."""
    return base.parameters_of(model, efa_layers(model))


def efa_layers(model: nn.Module) -> dict[str, base.LayerWithEFA]:
    """The layers with EFA: layer0, layer1, …; of several models in a ModuleDict NAME.layer0, …"""
    several = isinstance(model, nn.ModuleDict) and len(model) > 1
    layers = {}
    for path, module in model.named_modules():
        if _is_layer(module):
            owner, name = path.partition(".")[0], path.rpartition(".")[2].removesuffix("_convnet")
            layers[f"{owner}.{name}" if several else name] = base.LayerWithEFA(module.efa, module, module.local)
    return layers


def without_efa(model: nn.Module) -> AbstractContextManager[None]:
    """While it lasts the model computes without its EFA blocks: the difference is what they contribute.

    Raises:
        EFAError: no EFA, or a model that has been compiled, in which EFA is no part of its own any more.
    """
    base.require_efa(model, has_efa(model), "switch off")
    if any(vars(module).get(_COMPILED, ({},))[0] for module in model.modules()):
        raise EFAError("EFA cannot be switched off in a model that has been compiled: build it without compile_mode: compile.")
    return base.switched_off(efa_layers(model))


def _forget_compiled(model: nn.Module) -> None:
    """What NequIP has compiled knows the weights of before."""
    for module in model.modules():
        if _COMPILED in vars(module):
            module._compiled_cache = ({},)
            module.weight_names = module.buffer_names = None


def _note_max_length(model: nn.Module, max_length: str | None) -> None:
    """Among the metadata of models from packages of NequIP before 0.17, which do not ask their layers for theirs."""
    for module in model.modules():
        own = vars(module).get("_metadata")
        if isinstance(own, dict):
            own.pop(MAX_LENGTH, None)
            if max_length is not None and MAX_LENGTH not in module.metadata:
                own[MAX_LENGTH] = max_length


def _refuse_code_of_a_package(model: nn.Module) -> None:
    """NequIP packages a module's code from where it is first found: with the new blocks' weights that of the old ones."""
    others = {_stripped[module] for module in model.modules() if module in _stripped} - {__version__}
    if others:
        raise EFAError(
            f"the package that EFA was taken out of has the code of efa_addons {others.pop()}, and this is {__version__}: in a "
            "new package the old code would run the new blocks. Package the model without EFA first, and put EFA into that one."
        )


def _is_layer(module: nn.Module) -> bool:
    return getattr(module, "is_efa_layer", False)


def network_of(model: nn.Module) -> nn.Module:
    """The sequence of modules that holds the layers, found by their names."""
    for module in model.modules():
        if layer_names(module):
            return module
    raise EFAError(
        f"EFA goes into a NequIP GNN with layers layer0_convnet, layer1_convnet, …; this {type(model).__name__} has none."
    )


def layer_names(network: nn.Module) -> list[str]:
    """layer0_convnet, layer1_convnet, … of the sequence that holds them."""
    return [name for name in network._modules if _LAYER.fullmatch(name)]
