"""Helpers of the NequIP tests."""

from __future__ import annotations

from typing import Any

import torch
from host_support import fill
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel

from efa_addons.hosts.nequip import NequIPEFAModel, efa_parameters

TYPES = ["H", "C", "O"]
SMALL: dict[str, Any] = {
    "seed": 3,
    "model_dtype": "float64",
    "type_names": TYPES,
    "r_max": 2.0,
    "num_layers": 3,
    "l_max": 1,
    "parity": True,
    "num_features": 4,
    "radial_mlp_width": 8,
    "avg_num_neighbors": 4.0,
    "per_type_energy_shifts": {"H": -1.0, "C": -2.0, "O": -3.0},
    "per_type_energy_scales": 1.0,
}
EFA: dict[str, Any] = {"max_length": 8.0, "num_features_qk": 4, "num_features_v": 4, "mlp_features": 8}


def stock(**options: Any) -> torch.nn.Module:
    return NequIPGNNModel(**{**SMALL, **options}).eval()


def with_efa(efa: dict[str, Any] | None = None, mode: str = "parallel", **options: Any) -> torch.nn.Module:
    return NequIPEFAModel(efa={**EFA, **(efa or {})}, mode=mode, **{**SMALL, **options}).eval()


def batch_of(*structures, r_max: float = 2.0, **fields: torch.Tensor) -> AtomicDataDict.Type:
    """What NequIP's data loader makes of structures."""
    transforms = [
        ChemicalSpeciesToAtomTypeMapper(model_type_names=TYPES, chemical_species_to_atom_type_map={t: t for t in TYPES}),
        NeighborListTransform(r_max=r_max),
    ]
    frames = []
    for atoms in structures:
        data = from_ase(atoms)
        for transform in transforms:
            data = transform(data)
        frames.append(data)
    return {**AtomicDataDict.batched_from_list(frames), **fields}


def evaluate(model: torch.nn.Module, *structures, **options) -> AtomicDataDict.Type:
    return model(batch_of(*structures, **options))


def randomize(model: torch.nn.Module, size: float = 0.3, seed: int = 0) -> torch.nn.Module:
    """Random weights in the EFA blocks, so that they say something."""
    fill(efa_parameters(model).values(), size, seed)
    return model
