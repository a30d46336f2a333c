"""What EFA wants to know of a training set: 'auto' options become numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from schnetpack import properties
from torch import Tensor

from efa_addons.config import EFAConfig
from efa_addons.nn.checks import largest_distance

SAMPLE = 256  # structures looked at for the usual size


def resolve_from(config: EFAConfig, datamodule: Any) -> EFAConfig:
    """Replaces 'auto' options by numbers from the training set of a SchNetPack data module, in its unit of distance."""
    if not config.needs_data:
        return config
    largest, atoms, structures = 0.0, 0, 0
    for positions in _positions(datamodule.train_dataset, None):
        one_graph = torch.zeros(len(positions), dtype=torch.long)
        largest = max(largest, largest_distance(positions, one_graph))
        atoms, structures = atoms + len(positions), structures + 1
    return config.resolve(largest, atoms / max(structures, 1))


def usual_num_atoms(datamodule: Any) -> int:
    """Mean number of atoms of some structures spread over the training set."""
    dataset = datamodule.train_dataset
    chosen = list(range(0, len(dataset), max(1, len(dataset) // SAMPLE)))
    sizes = [len(positions) for positions in _positions(dataset, chosen)]
    return round(sum(sizes) / max(len(sizes), 1))


def _positions(dataset: Any, indices: list[int] | None) -> Iterator[Tensor]:
    """Positions (N, 3) of structures, without the transforms: no neighbor lists are made."""
    for structure in dataset.iter_properties(indices, load_properties=[], load_structure=True):
        yield structure[properties.R]
