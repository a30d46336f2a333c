"""Dynamics at constant energy, with forces that are known to conserve it and forces that are known not to."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("ase")

from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import Calculator

from efa_addons.errors import EFAError
from efa_addons.studies.dynamics import Dynamics, nve


class Spring(Calculator):
    """The first two atoms on a spring, k in eV/Å²; `push` adds a constant force along the bond that no energy belongs to."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, k: float, push: float = 0.0) -> None:
        super().__init__()
        self.k, self.push = k, push

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        bond = self.atoms.positions[1] - self.atoms.positions[0]
        length = np.linalg.norm(bond)
        force = (-self.k * (length - 1.0) + self.push) * bond / length
        forces = np.zeros_like(self.atoms.positions)
        forces[:2] = -force, force
        self.results = {"energy": 0.5 * self.k * (length - 1.0) ** 2, "forces": forces}


ATOMS = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
SHORT = Dynamics(picoseconds=0.5, timestep=0.5, temperature=300.0)


def test_a_spring_keeps_its_energy():
    found = nve(Spring(30.0), ATOMS, SHORT)
    assert abs(found["drift"]) < 1e-4 and found["spread"] < 1e-3 and found["fell_apart"] is None
    assert (
        found["time"][0] == 0 and found["time"][-1] == pytest.approx(0.5) and len(found["time"]) == len(found["energy"]) == 200
    )
    # the error of velocity Verlet is of second order in its step
    finer = nve(Spring(30.0), ATOMS, Dynamics(picoseconds=0.5, timestep=0.25, temperature=300.0))
    assert found["spread"] / finer["spread"] == pytest.approx(4, rel=0.1)


def test_the_temperature_is_that_of_the_vibration():
    """Of one degree of freedom, which has half of its energy in motion."""
    found = nve(Spring(30.0), ATOMS, Dynamics(picoseconds=2.0, timestep=0.25, temperature=1e-6))
    assert found["temperature"] == pytest.approx(0.5 * 30.0 * 0.1**2 / 8.617333e-5, rel=0.02)


@pytest.mark.parametrize("name", ["N2", "H2O", "CO2", "C2H6"])
def test_it_begins_at_the_temperature_that_was_asked_for(name):
    """Without forces it stays as it begins; shapes of one, three, four and 18 vibrations."""
    free = Spring(0.0)
    found = nve(free, molecule(name), Dynamics(picoseconds=0.002, timestep=0.5, temperature=300.0))
    assert found["temperature"] == pytest.approx(300.0, rel=1e-6)


def test_forces_without_an_energy_are_seen():
    push = nve(Spring(0.0, push=0.02), ATOMS, SHORT)
    assert push["drift"] > 5e-3


def test_a_molecule_that_falls_apart_is_said_to():
    found = nve(Spring(0.0, push=2.0), ATOMS, SHORT)
    assert 0 < found["fell_apart"] < 0.5 and len(found["time"]) == len(found["energy"])


def test_settings_are_checked():
    with pytest.raises(EFAError, match="timestep must be positive, got 0"):
        Dynamics(timestep=0)
    with pytest.raises(EFAError, match="picoseconds must be positive, got inf"):
        Dynamics(picoseconds=float("inf"))
