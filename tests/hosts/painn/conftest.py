"""Small data in an ASE database, as SchNetPack keeps them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("schnetpack")

import ase.io
import numpy as np
from host_support import labelled_ethanols
from schnetpack.data import ASEAtomsData


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with train.db and train.xyz: rattled ethanols, labelled by a Lennard-Jones potential."""
    folder = tmp_path_factory.mktemp("painn")
    structures, labels = labelled_ethanols(20), []
    for atoms in structures:
        labels.append({"energy": np.array([atoms.get_potential_energy()]), "forces": atoms.get_forces()})
        atoms.calc = None
    units = {"energy": "eV", "forces": "eV/Ang"}
    data = ASEAtomsData.create(str(folder / "train.db"), distance_unit="Ang", property_unit_dict=units)
    data.add_systems(labels, structures)
    ase.io.write(folder / "train.xyz", structures)
    return folder


@pytest.fixture
def ethanol(workspace):
    return ase.io.read(workspace / "train.xyz", index=0)
