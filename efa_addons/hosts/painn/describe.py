"""What a SchNetPack model says about its EFA."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import torch
from ase import Atoms
from schnetpack.interfaces.ase_interface import AtomsConverter
from schnetpack.transform import ASENeighborList
from torch import Tensor, nn

from efa_addons.hosts import base
from efa_addons.hosts.painn import model as painn_model
from efa_addons.hosts.painn.insert import efa_config, efa_layers, representation_of


def describe(model: nn.Module, atoms_per_graph: int | None = None, num_graphs: int = 1) -> str:
    """One line: layers, grid, frequencies, parameters; and EFA's memory in a training step where a batch is given."""
    return painn_model.describe(representation_of(model), atoms_per_graph, num_graphs)


def inspect(model: nn.Module, structures: Sequence[Atoms] | None = None) -> str:
    """What a model contains: layers, EFA settings that differ from the defaults, and how much EFA says in each layer.

    Args:
        model: a SchNetPack model with PaiNN.
        structures: to measure the contributions on; none given: a small cluster of H, C and O.
    """
    painn = representation_of(model)
    head = (
        f"PaiNN (read by schnetpack {version('schnetpack')}): {len(painn.mixing)} layers, n_atom_basis {painn.n_atom_basis}, "
        f"cutoff {cutoff_of(model):.4g} Å, {str(next(model.parameters()).dtype).removeprefix('torch.')}"
    )
    return (
        head
        + "\n"
        + base.inspect(
            describe(model),
            efa_config(model),
            efa_layers(model),
            [f"layer{i}" for i in range(len(painn.mixing))],
            lambda: contributions(model, [base.probe(["H", "C", "O"] * 4)] if structures is None else structures),
            "a small cluster of H, C and O (--data takes other structures)" if structures is None else "the structures",
        )
    )


def contributions(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, tuple[float, float]]:
    """For each layer with EFA: the norms per atom, averaged, of EFA's output and of what the interaction makes of q and mu."""
    inputs = batch_of(model, structures)
    return base.contributions(efa_layers(model), lambda: model(inputs), lambda output: torch.cat(output, dim=1))


def attended(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, list[base.Attended]]:
    """For each layer with EFA: what its attention is called with, atoms in the order of the structures."""
    inputs = batch_of(model, structures)
    return base.attended(efa_layers(model), lambda: model(inputs))


def cutoff_of(model: nn.Module) -> float:
    """How far a local layer sees, Å."""
    return float(representation_of(model).cutoff)


def batch_of(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, Tensor]:
    """What SchNetPack's data loader makes of structures, in the model's dtype and on its device.

    Charges and spins that a model asks for are taken from `info` by their keys; of structures without them they are 0.
    """
    like = next(model.parameters())
    converter = AtomsConverter(ASENeighborList(cutoff_of(model)), dtype=like.dtype, device=like.device)
    batch = converter([Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc) for atoms in structures])
    for embedding in representation_of(model).electronic_embeddings:
        key = embedding.property_key
        batch[key] = like.new_tensor([float(atoms.info.get(key, 0.0)) for atoms in structures])
    return batch
