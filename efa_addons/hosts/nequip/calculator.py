"""NequIP's ASE calculator for models with EFA."""

from __future__ import annotations

import math
from typing import Any

import torch
from ase import Atoms
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator
from torch import nn

from efa_addons.hosts.nequip.layer import MAX_LENGTH
from efa_addons.nn.checks import largest_distance, refuse_periodic, warn_if_wider


class NequIPEFACalculator(NequIPCalculator):
    """NequIPCalculator that refuses periodic structures and warns of those wider than max_length, which a compiled model with
    EFA cannot do itself.

    A molecule without a cell gets no stress, where NequIPCalculator divides by its zero volume.
    """

    def __init__(self, model: nn.Module, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        compiled = getattr(model, "model", None)
        metadata = compiled.get_metadata() if hasattr(compiled, "get_metadata") else {}
        self._max_length = float(metadata.get(MAX_LENGTH, math.inf))

    def atoms_to_data(self, atoms: Atoms) -> AtomicDataDict.Type:
        refuse_periodic(torch.as_tensor(atoms.pbc))
        data = super().atoms_to_data(atoms)
        if self._max_length < math.inf:
            positions = data[AtomicDataDict.POSITIONS_KEY]
            batch = torch.zeros(len(positions), dtype=torch.long, device=positions.device)
            if warn_if_wider(largest_distance(positions, batch, exact_up_to=256), self._max_length):
                self._max_length = math.inf
        return data

    def calculate(self, atoms: Atoms | None = None, *args: object, **options: object) -> None:
        super().calculate(atoms, *args, **options)
        if self.atoms.cell.rank < 3:
            self.results.pop("stress", None)
