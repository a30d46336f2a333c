"""What a MACE model says about its EFA."""

from __future__ import annotations

from collections.abc import Sequence

import mace
from ase import Atoms
from torch import nn

from efa_addons.hosts import base
from efa_addons.hosts.mace.insert import efa_config, efa_layers
from efa_addons.hosts.mace.probe import batch_of, probe


def describe(model: nn.Module, atoms_per_graph: int | None = None, num_graphs: int = 1, device: str = "cpu") -> str:
    """One line: layers, grid, frequencies, parameters; and EFA's memory in a training step where a batch is given."""
    layers, config = efa_layers(model), efa_config(model)
    return base.describe(model, layers, len(model.products), config, atoms_per_graph, num_graphs, device)


def inspect(model: nn.Module, structures: Sequence[Atoms] | None = None) -> str:
    """What a model contains: layers, EFA settings that differ from the defaults, and how much EFA says in each layer.

    Args:
        model: a MACE model.
        structures: to measure the contributions on; none given: a small cluster of the model's elements.
    """
    elements = ", ".join(Atoms(model.atomic_numbers.tolist()).symbols)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    head = (
        f"MACE (read by mace-torch {mace.__version__}): {len(model.products)} layers, r_max {cutoff_of(model):.4g} Å, "
        f"{dtype}, heads {list(getattr(model, 'heads', ['Default']))}, elements {elements}"
    )
    names = [f"layer{i}" for i in range(len(model.products))]
    return (
        head
        + "\n"
        + base.inspect(
            describe(model),
            efa_config(model),
            efa_layers(model),
            names,
            lambda: contributions(model, probe(model) if structures is None else structures),
            base.THE_PROBE if structures is None else "the structures",
        )
    )


def contributions(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, tuple[float, float]]:
    """For each layer with EFA: the norms per atom, averaged, of EFA's output and of the local layer's."""
    return base.contributions(efa_layers(model), lambda: _run(model, structures), lambda features: features)


def attended(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, list[base.Attended]]:
    """For each layer with EFA: what its attention is called with, atoms in the order of the structures."""
    return base.attended(efa_layers(model), lambda: _run(model, structures))


def cutoff_of(model: nn.Module) -> float:
    """How far a local layer sees, Å."""
    return float(model.r_max)


def _run(model: nn.Module, structures: Sequence[Atoms]) -> None:
    model(batch_of(model, structures), compute_force=False)
