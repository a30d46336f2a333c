"""Small data in an ASE database, as SchNetPack keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("schnetpack")

import ase.io
import numpy as np
from ase.build import molecule
from ase.calculators.lj import LennardJones
from schnetpack.data import ASEAtomsData


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with train.db and train.xyz: rattled ethanols, labelled by a Lennard-Jones potential."""
    folder = tmp_path_factory.mktemp("painn")
    structures, labels = [], []
    for i in range(20):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=i)
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.05, rc=20.0)
        labels.append({"energy": np.array([atoms.get_potential_energy()]), "forces": atoms.get_forces()})
        atoms.calc = None
        structures.append(atoms)
    units = {"energy": "eV", "forces": "eV/Ang"}
    data = ASEAtomsData.create(str(folder / "train.db"), distance_unit="Ang", property_unit_dict=units)
    data.add_systems(labels, structures)
    ase.io.write(folder / "train.xyz", structures)
    return folder


@pytest.fixture
def ethanol(workspace):
    return ase.io.read(workspace / "train.xyz", index=0)
