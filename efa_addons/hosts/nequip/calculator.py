"""NequIP's ASE calculator for models with EFA."""

from __future__ import annotations

import torch
from ase import Atoms
from nequip.data import AtomicDataDict
from nequip.integrations.ase import NequIPCalculator

from efa_addons.nn.checks import refuse_periodic


class NequIPEFACalculator(NequIPCalculator):
    """NequIPCalculator that refuses periodic structures, which a compiled model with EFA cannot do itself.

    A molecule without a cell gets no stress, where NequIPCalculator divides by its zero volume.
    """

    def atoms_to_data(self, atoms: Atoms) -> AtomicDataDict.Type:
        refuse_periodic(torch.as_tensor(atoms.pbc))
        return super().atoms_to_data(atoms)

    def calculate(self, atoms: Atoms | None = None, *args: object, **options: object) -> None:
        super().calculate(atoms, *args, **options)
        if self.atoms.cell.rank < 3:
            self.results.pop("stress", None)
