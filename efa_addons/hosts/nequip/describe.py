"""What a NequIP model says about its EFA."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version

import torch
from ase import Atoms
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.nn import graph_model
from torch import nn

from efa_addons.hosts import base
from efa_addons.hosts.nequip.insert import efa_config, efa_layers, layer_names, network_of


def describe(model: nn.Module, atoms_per_graph: int | None = None, num_graphs: int = 1) -> str:
    """One line: layers, grid, frequencies, parameters; and EFA's memory in a training step where a batch is given."""
    network_of(model)  # raises where there is none
    num_layers = sum(len(layer_names(module)) for module in model.modules())
    device = next(model.parameters()).device
    return base.describe(model, efa_layers(model), num_layers, efa_config(model), atoms_per_graph, num_graphs, device)


def inspect(model: nn.Module, structures: Sequence[Atoms] | None = None) -> str:
    """What a model contains: layers, EFA settings that differ from the defaults, and how much EFA says in each layer.

    Args:
        model: a NequIP model.
        structures: to measure the contributions on; none given: a small cluster of the model's types.
    """
    names = [name.removesuffix("_convnet") for name in layer_names(network_of(model))]
    types = _types(model)
    head = (
        f"NequIP (read by nequip {version('nequip')}): {len(names)} layers, r_max {cutoff_of(model):.4g} Å, "
        f"{str(model.model_dtype).removeprefix('torch.')}, types {', '.join(types)}"
    )

    def measured() -> dict[str, tuple[float, float]]:
        return contributions(model, _probe(model) if structures is None else batch_of(model, structures))

    where = base.THE_PROBE if structures is None else "the structures"
    return head + "\n" + base.inspect(describe(model), efa_config(model), efa_layers(model), names, measured, where)


def contributions(model: nn.Module, data: AtomicDataDict.Type) -> dict[str, tuple[float, float]]:
    """For each layer with EFA: the norms per atom, averaged, of EFA's output and of the local layer's.

    Args:
        model: a NequIP model with EFA, or a ModuleDict with one. It runs in eager mode, also where it trains compiled.
        data: structures with neighbor lists.
    """
    graph_model = next(iter(model.values())) if isinstance(model, nn.ModuleDict) else model
    layers = efa_layers(graph_model)
    base.require_efa(graph_model, bool(layers), "")
    return base.contributions(layers, lambda: _run(graph_model, data), lambda output: output[AtomicDataDict.NODE_FEATURES_KEY])


def attended(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, list[base.Attended]]:
    """For each layer with EFA: what its attention is called with, atoms in the order of the structures."""
    data = batch_of(model, structures)
    return base.attended(efa_layers(model), lambda: _run(model, data))


def cutoff_of(model: nn.Module) -> float:
    """How far a local layer sees, Å."""
    return float(model.metadata[graph_model.R_MAX_KEY])


def batch_of(model: nn.Module, structures: Sequence[Atoms]) -> AtomicDataDict.Type:
    """What NequIP's data loader makes of structures whose chemical symbols are the model's types, on its device."""
    types = _types(model)
    base.refuse_other_elements(structures, types)
    to_types = ChemicalSpeciesToAtomTypeMapper(types, chemical_species_to_atom_type_map={name: name for name in types})
    return _with_neighbors(model, [to_types(from_ase(atoms)) for atoms in structures])


def _with_neighbors(model: nn.Module, structures: list[AtomicDataDict.Type]) -> AtomicDataDict.Type:
    to_neighbors = NeighborListTransform(r_max=cutoff_of(model))
    batch = AtomicDataDict.batched_from_list([to_neighbors(structure) for structure in structures])
    return AtomicDataDict.to_(batch, next(model.parameters()).device)


def _types(model: nn.Module) -> list[str]:
    return str(model.metadata[graph_model.TYPE_NAMES_KEY]).split(" ")


def _run(model: nn.Module, data: AtomicDataDict.Type) -> None:
    """In eager mode, without forces."""
    with torch.no_grad():
        network_of(model)({key: data[key] for key in model.model_input_fields if key in data})


def _probe(model: nn.Module) -> AtomicDataDict.Type:
    """Types in turn, which need not be chemical symbols."""
    data = from_ase(base.probe(["H"] * base.NUM_PROBE_ATOMS))
    data[AtomicDataDict.ATOM_TYPE_KEY] = torch.arange(base.NUM_PROBE_ATOMS) % len(_types(model))
    return _with_neighbors(model, [data])
