"""nequip-compile for ASE: the compiled model is the package it was made from, in NequIP's calculator and in ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import molecule
from nequip.integrations.ase import NequIPCalculator

from efa_addons import EFAError, EFAWarning
from efa_addons.hosts.nequip import NequIPEFACalculator, efa_config, without_efa

pytestmark = [pytest.mark.slow, pytest.mark.one_compilation]
OPTIONS = {"device": "cpu", "chemical_species_to_atom_type_map": True}


def test_compiled_for_ase(far_sighted, compiled, ethanol):
    package = NequIPEFACalculator._from_saved_model(str(far_sighted), **OPTIONS)
    calculators = [c.from_compiled_model(str(compiled("ase")), **OPTIONS) for c in (NequIPEFACalculator, NequIPCalculator)]
    for atoms in (ethanol, molecule("H2O"), molecule("CH3OH")):
        energy, forces = package.get_potential_energy(atoms), package.get_forces(atoms)
        package.reset()  # or it would remember the energy
        with without_efa(package.model):
            assert abs(package.get_potential_energy(atoms) - energy) > 0.1
        package.reset()
        for calculator in calculators:
            # not equal to the last digit: the package takes the sum over pairs, the compiled model the grid
            assert calculator.get_potential_energy(atoms) == pytest.approx(energy, abs=1e-4)
            assert np.abs(calculator.get_forces(atoms) - forces).max() < 1e-4

    metadata = torch._inductor.aoti_load_package(str(compiled("ase"))).get_metadata()
    assert float(metadata["efa_max_length"]) == pytest.approx(efa_config(package.model).max_length)

    # Wider than max_length: the package warns where it takes the grid, the compiled model cannot, and our calculator does once.
    ours, theirs = calculators
    apart = ethanol + molecule("H2O")
    apart.positions[-3:] += 2 * float(metadata["efa_max_length"])
    with pytest.warns(EFAWarning, match="Å wide, EFA was set up for max_length="):
        ours.get_potential_energy(apart)
    ours.get_potential_energy(ethanol + apart)
    theirs.get_potential_energy(apart)

    # Periodic: our calculator looks at pbc and refuses; the compiled model cannot, and its energy is not a number.
    ethanol.set_cell([4.0, 4.0, 4.0])
    ethanol.pbc = True
    with pytest.raises(EFAError, match="periodic"):
        ours.get_potential_energy(ethanol)
    assert np.isnan(theirs.get_potential_energy(ethanol)) and np.isnan(theirs.get_forces(ethanol)).any()
