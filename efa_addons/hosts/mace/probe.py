"""A small structure that every MACE model can compute, to look at a model without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ase import Atoms
from mace import data
from mace.tools import torch_geometric
from mace.tools.utils import AtomicNumberTable
from torch import Tensor, nn

from efa_addons.dtype import default_dtype
from efa_addons.hosts import base


def probe(model: nn.Module) -> list[Atoms]:
    """One rattled cluster of the model's elements, non-periodic."""
    elements = model.atomic_numbers.tolist()
    return [base.probe([elements[i % len(elements)] for i in range(base.NUM_PROBE_ATOMS)])]


def batch_of(model: nn.Module, structures: Sequence[Atoms]) -> dict[str, Tensor]:
    """The dictionary that MACE's data loader makes of structures, in the model's dtype and on its device."""
    table = AtomicNumberTable(model.atomic_numbers.tolist())
    base.refuse_other_elements(structures, list(Atoms(table.zs).symbols))
    like = next(model.parameters())
    with default_dtype(like.dtype):
        graphs = [
            data.AtomicData.from_config(
                data.config_from_atoms(atoms), z_table=table, cutoff=float(model.r_max), heads=getattr(model, "heads", None)
            )
            for atoms in structures
        ]
    loaded: Any = next(iter(torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))))
    return {
        name: value.to(like.device, like.dtype if value.is_floating_point() else None)
        for name, value in loaded.to_dict().items()
        if isinstance(value, Tensor)
    }


def energies(model: nn.Module, structures: Sequence[Atoms]) -> Tensor:
    """(heads, structures) energies, eV."""
    batch = batch_of(model, structures)
    found = []
    for head in range(len(getattr(model, "heads", None) or ["Default"])):
        batch["head"] = torch.full_like(batch["head"], head)
        found.append(model(dict(batch), compute_force=False)["energy"].detach())
    return torch.stack(found)
