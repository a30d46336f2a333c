"""NequIP's own fixtures, small data, and small models."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nequip")

import ase.io
from ase.build import molecule
from ase.calculators.lj import LennardJones
from nequip.utils.unittests.conftest import *  # noqa: F403  what its unit-test classes ask for


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with train.xyz: rattled ethanols without a cell, labelled by a Lennard-Jones potential."""
    folder = tmp_path_factory.mktemp("nequip")
    structures = []
    for i in range(12):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=i)
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.05, rc=20.0)
        atoms.get_potential_energy(), atoms.get_forces()
        structures.append(atoms)
    ase.io.write(folder / "train.xyz", structures)
    return folder


@pytest.fixture
def ethanol(workspace):
    atoms = ase.io.read(workspace / "train.xyz", index=0)
    atoms.calc = None
    return atoms
