"""What the adapters of all hosts share; docs/adding-a-host.md says what else an adapter is made of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor, nn

from efa_addons.config import AUTO, EFAConfig
from efa_addons.dtype import default_dtype
from efa_addons.errors import EFAError
from efa_addons.memory import predict_memory
from efa_addons.nn import EFABlock, EuclideanFastAttention

NUM_PROBE_ATOMS = 12
THE_PROBE = "a small cluster of the model's elements (--data takes other structures)"


def probe(elements: Sequence[str]) -> Atoms:
    """A small rattled cluster of `NUM_PROBE_ATOMS` atoms, non-periodic, to look at a model without data."""
    rng = np.random.default_rng(0)
    lattice = np.stack(np.unravel_index(np.arange(NUM_PROBE_ATOMS), (3, 2, 2)), axis=1)
    return Atoms(elements, 1.5 * lattice + rng.uniform(-0.2, 0.2, (NUM_PROBE_ATOMS, 3)))


class LayerWithEFA(NamedTuple):
    """One layer of a host that carries EFA. Adapters list them by name, `layers: Mapping[str, LayerWithEFA]`."""

    block: EFABlock
    switch: nn.Module  # what stands between host and block: its attribute `enabled` turns EFA on and off
    local: nn.Module  # the host's own layer, beside which the block stands
    num_steps: int = 1  # of the host that it serves


def chosen_layers(config: EFAConfig, num_layers: int) -> list[int]:
    """The layers that get a block, in order.

    Raises:
        EFAError: one of them does not exist, or the settings are no EFAConfig.
    """
    if not isinstance(config, EFAConfig):
        raise EFAError(f"config must be an EFAConfig, got {config!r}: EFAConfig(...) or EFAConfig.from_dict(...) makes one.")
    layers = range(num_layers) if config.layers is None else config.layers
    beyond = [layer for layer in layers if layer >= num_layers]
    if beyond:
        raise EFAError(f"layers {beyond} do not exist: the model has the layers 0 to {num_layers - 1}.")
    return sorted(set(layers))


@contextmanager
def building(like: Tensor, seed: int | None) -> Iterator[None]:
    """New weights have the dtype of `like` and come from `seed`; none given: torch's generator, which is left where it was."""
    with default_dtype(like.dtype), torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def refuse_a_second(has_efa: bool) -> None:
    """Raises for a model into which EFA was put before."""
    if has_efa:
        raise EFAError("this model has EFA already; take it out first with strip_efa (`efa-addons strip`).")


def require_efa(model: nn.Module, has_efa: bool, purpose: str) -> None:
    """Raises for a model without EFA."""
    if not has_efa:
        raise EFAError(f"this {type(model).__name__} has no EFA{purpose and ' to ' + purpose}.")


def require_settings(efa: Any) -> None:
    """Raises where a base has no EFA, and options are missing: null, by which one that has EFA keeps it."""
    if efa is None:
        raise EFAError("efa is null, which keeps a base's EFA, and this base has none: give options of EFAConfig.")


def refuse_other_settings(given: Mapping[str, Any] | None, carried: EFAConfig) -> None:
    """A trained model's EFA is taken as it is: other settings would silently drop trained weights.

    Args:
        given: the options of EFAConfig that were given, 'auto' standing for what the model has; None: none were.
        carried: of the trained model.
    """
    if given is None:
        return
    if not isinstance(given, Mapping):
        raise EFAError(
            f"efa must be null, by which a model keeps its EFA, or a mapping of its settings, got {given!r}. To take EFA out: "
            "`efa-addons strip`; in NequIP the target StripEFA."
        )
    wanted, kept = EFAConfig.from_dict(given).to_dict(), carried.to_dict()
    changed = [f"{k}: {wanted[k]} (the model has {kept[k]})" for k in given if wanted[k] not in (kept[k], AUTO)]
    if changed:
        raise EFAError(
            f"the foundation model has EFA with other settings: {'; '.join(changed)}. Leave these options out to go on with "
            "its EFA, or take it out first (`efa-addons strip`; in NequIP the target StripEFA)."
        )


def other_settings(now: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """What differs between the settings of a model and those of a checkpoint, in words; empty: nothing.

    An earlier version's checkpoint lacks options that this one has: they are at their defaults.
    """
    if saved:
        saved = {**EFAConfig().to_dict(), **saved}
    names = [name for name in {**now, **saved} if now.get(name) != saved.get(name)]
    return "; ".join(f"{name}: {now.get(name)} (checkpoint: {saved.get(name)})" for name in names)


def refuse_other_elements(structures: Sequence[Atoms], elements: Sequence[str]) -> None:
    """Raises for structures of elements that a model does not know."""
    others = sorted({symbol for atoms in structures for symbol in atoms.symbols} - set(elements))
    if others:
        raise EFAError(
            f"the structures have {', '.join(others)}, the model knows {', '.join(elements)}: give structures of these."
        )


def parameters_of(model: nn.Module, layers: Mapping[str, LayerWithEFA]) -> dict[str, nn.Parameter]:
    """The parameters of the blocks by their names in the model."""
    ids = {id(parameter) for layer in layers.values() for parameter in layer.block.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in ids}


def freeze_base(model: nn.Module, layers: Mapping[str, LayerWithEFA], freeze: bool) -> None:
    """With `freeze`, of all parameters only those of the blocks are trained; without, all, whatever a saved model says.

    Raises:
        EFAError: it is not a boolean: a word of a command line, say, which would count as true.
    """
    if not isinstance(freeze, bool):
        raise EFAError(f"freeze_base must be true or false, got {freeze!r}.")
    trained = {id(parameter) for parameter in parameters_of(model, layers).values()}
    for parameter in model.parameters():
        parameter.requires_grad_(not freeze or id(parameter) in trained)


@contextmanager
def switched_off(layers: Mapping[str, LayerWithEFA]) -> Iterator[None]:
    """While it lasts the blocks say nothing."""
    before = {name: layer.switch.enabled for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.switch.enabled = False
        yield
    finally:
        for name, layer in layers.items():
            layer.switch.enabled = before[name]


def contributions(
    layers: Mapping[str, LayerWithEFA], run: Callable[[], Any], features: Callable[[Any], Tensor]
) -> dict[str, tuple[float, float]]:
    """For each layer with EFA: the norms per atom, averaged, of EFA's output and of the local layer's.

    Args:
        layers: of a model.
        run: computes the model on some structures.
        features: from the output of a local layer to its features (N, …).
    """
    found: dict[tuple[str, str], float] = {}
    hooks = []

    def keep(name: str, which: str, select: Callable[[Any], Tensor]) -> None:
        def hook(module: nn.Module, inputs: object, output: Any) -> None:
            # a layer shared by several steps of the host speaks more than once; the last word counts
            found[name, which] = select(output).detach().flatten(1).norm(dim=1).mean().item()

        module = layers[name].block if which == "efa" else layers[name].local
        hooks.append(module.register_forward_hook(hook))

    for name in layers:
        keep(name, "efa", lambda output: output)
        keep(name, "local", features)
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (found[name, "efa"], found[name, "local"]) for name in layers}


class Attended(NamedTuple):
    """What one call gave to an attention; see `EuclideanFastAttention.forward`."""

    attention: EuclideanFastAttention
    inputs: Tensor
    positions: Tensor
    batch: Tensor | None


def attended(layers: Mapping[str, LayerWithEFA], run: Callable[[], Any]) -> dict[str, list[Attended]]:
    """For each layer with EFA: what its attention is called with, once for each step of the host that the layer serves.

    Args:
        layers: of a model that attends (no emulated ones).
        run: computes the model on some structures.
    """
    found: dict[str, list[Attended]] = {name: [] for name in layers}

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(attention: nn.Module, given: tuple[Any, ...]) -> None:
            inputs, positions, batch = given[:3]
            found[name].append(Attended(attention, inputs.detach(), positions.detach(), batch))

        return hook

    hooks = [layer.block.attention.register_forward_pre_hook(keep(name)) for name, layer in layers.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def describe(
    model: nn.Module,
    layers: Mapping[str, LayerWithEFA],
    num_layers: int,
    config: EFAConfig | None,
    atoms_per_graph: int | None = None,
    num_graphs: int = 1,
    device: str | torch.device = "cpu",
) -> str:
    """One line: layers, method, frequencies, parameters; and EFA's memory in a training step where a batch is given."""
    if config is None:
        return "no EFA"
    blocks = [layer.block for layer in layers.values() for _ in range(layer.num_steps)]
    new, total = (sum(p.numel() for p in ps) for ps in (parameters_of(model, layers).values(), model.parameters()))
    kind = "emulated (control)" if config.emulate else _method([block.attention for block in blocks])
    line = (
        f"EFA in {len(blocks)} of {num_layers} layers: {kind}, max_frequency {config.max_frequency:.4g}, "
        f"max_length {config.max_length:.4g} Å, {new} of {total} parameters"
    )
    if atoms_per_graph is not None:
        blocks = [copy.deepcopy(block).to(device) for block in blocks]
        size = predict_memory(blocks, atoms_per_graph, num_graphs) / 2**20
        line += f", {size:.3g} MiB in a training step of {num_graphs} x {atoms_per_graph} atoms"
    return line


def _method(attentions: Sequence[EuclideanFastAttention]) -> str:
    """The method of all layers; what differs between them as a range."""
    limits = sorted({attention.pairwise_up_to for attention in attentions})
    if len(limits) == 1:
        return attentions[0].describe_method()
    return f"pairwise up to {limits[0]} to {limits[-1]} atoms (by layer), else {attentions[0].describe_grid()}"


def inspect(
    line: str,
    config: EFAConfig | None,
    layers: Mapping[str, LayerWithEFA],
    names: Sequence[str],
    measured: Callable[[], dict[str, tuple[float, float]]],
    where: str,
) -> str:
    """What a model contains: EFA settings that differ from the defaults, and how much EFA says in each layer.

    Args:
        line: of `describe`.
        config, layers: of the model.
        names: of all its layers.
        measured: `contributions`; called for a model with EFA only.
        where: the structures they are measured on, in words.
    """
    if config is None:
        return line
    default = EFAConfig().to_dict()
    lines = [line] + [f"  {name}: {value}" for name, value in config.to_dict().items() if value != default[name]]
    sizes = measured()
    for name in names:
        shown = name.replace("layer", "layer ")
        if name not in layers:
            lines.append(f"{shown}: no EFA")
            continue
        block = layers[name].block
        nonlocal_size, local_size = sizes[name]
        lines.append(
            f"{shown}: {block.irreps_in} -> {block.irreps_out}, norm of EFA's output {nonlocal_size:.3g} beside "
            f"{local_size:.3g} of the local layer's{', untrained' if nonlocal_size == 0 else ''}"
        )
    return "\n".join([*lines, f"norms: mean over the atoms of {where}"])
