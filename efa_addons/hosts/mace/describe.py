"""What a MACE model says about its EFA."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import mace
import torch
from ase import Atoms
from torch import nn

from efa_addons.config import EFAConfig
from efa_addons.hosts.mace.insert import efa_config, efa_parameters
from efa_addons.hosts.mace.probe import batch_of, probe
from efa_addons.memory import predict_memory
from efa_addons.nn import EuclideanFastAttention


def describe(model: nn.Module, atoms_per_graph: int | None = None, num_graphs: int = 1, device: str = "cpu") -> str:
    """One line: layers, grid, frequencies, parameters; and EFA's memory in a training step where a batch is given."""
    config = efa_config(model)
    if config is None:
        return "no EFA"
    blocks = [product.efa.block for product in model.products if hasattr(product, "efa")]
    new, total = (sum(p.numel() for p in ps) for ps in (efa_parameters(model).values(), model.parameters()))
    if config.emulate:
        kind = "emulated (control)"
    else:
        kind = _method([block.attention for block in blocks])
    line = (
        f"EFA in {len(blocks)} of {len(model.products)} layers: {kind}, max_frequency {config.max_frequency:.4g}, "
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
    points = max(attention.lebedev_num for attention in attentions)
    return f"pairwise up to {limits[0]} to {limits[-1]} atoms (by layer), else {points} Lebedev points"


def inspect(model: nn.Module, structures: Sequence[Atoms] | None = None) -> str:
    """What a model contains: layers, EFA settings that differ from the defaults, and how much EFA says in each layer.

    Args:
        model: a MACE model.
        structures: to measure the contributions on; none given: a small cluster of the model's elements.
    """
    config = efa_config(model)
    elements = ", ".join(Atoms(model.atomic_numbers.tolist()).symbols)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    lines = [
        f"MACE (read by mace-torch {mace.__version__}): {len(model.products)} layers, r_max {float(model.r_max):.4g} Å, "
        f"{dtype}, heads {list(getattr(model, 'heads', ['Default']))}, elements {elements}",
        describe(model),
    ]
    if config is None:
        return "\n".join(lines)
    default = EFAConfig().to_dict()
    lines += [f"  {name}: {value}" for name, value in config.to_dict().items() if value != default[name]]
    sizes = contributions(model, probe(model) if structures is None else structures)
    for i, product in enumerate(model.products):
        if not hasattr(product, "efa"):
            lines.append(f"layer {i}: no EFA")
            continue
        block = product.efa.block
        nonlocal_size, local_size = sizes[i]
        lines.append(
            f"layer {i}: {block.irreps_in} -> {block.irreps_out}, norm of EFA's output {nonlocal_size:.3g} beside "
            f"{local_size:.3g} of the local layer's{', untrained' if nonlocal_size == 0 else ''}"
        )
    where = (
        "a small cluster of the model's elements (--data takes other structures)" if structures is None else "the structures"
    )
    lines.append(f"norms: mean over the atoms of {where}")
    return "\n".join(lines)


def contributions(model: nn.Module, structures: Sequence[Atoms]) -> dict[int, tuple[float, float]]:
    """For each layer with EFA: the norms per atom, averaged, of EFA's output and of the local layer's."""
    found: dict[int, list[float]] = {}
    hooks = []
    for i, product in enumerate(model.products):
        if hasattr(product, "efa"):

            def keep(module: nn.Module, inputs: object, output: torch.Tensor, i: int = i) -> None:
                found.setdefault(i, []).append(output.detach().norm(dim=1).mean().item())

            hooks += [product.register_forward_hook(keep), product.efa.register_forward_hook(keep)]
    try:
        model(batch_of(model, structures), compute_force=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {i: (sizes[1], sizes[0]) for i, sizes in found.items()}
