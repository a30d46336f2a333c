"""Time and memory against the number of atoms, of a calculator whose memory is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("ase")

from ase.calculators.calculator import Calculator

from efa_addons.errors import EFAError
from efa_addons.studies.cost import SPACING, Cost, droplet, measure


class Pairs(Calculator):
    """Makes one tensor of N x N doubles at a time, after another has gone."""

    implemented_properties = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        for _ in range(2):
            total = torch.zeros(len(atoms), len(atoms), dtype=torch.float64).sum()
        self.results = {"energy": float(total), "forces": np.zeros((len(atoms), 3))}


def test_memory_is_what_the_calculator_makes():
    found = measure(Pairs(), Cost((100, 1000), repeats=2), ["H"])
    assert found["num_atoms"] == [100, 1000]
    assert found["memory"] == pytest.approx([100**2 * 8 / 2**20, 1000**2 * 8 / 2**20], rel=1e-2)
    assert 0 <= found["seconds"][0] < found["seconds"][1] < 1


def test_what_does_not_fit_into_a_gpu_is_left_out(capsys):
    class Small(Pairs):
        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            if len(atoms) > 100:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().calculate(atoms, properties, system_changes)

    found = measure(Small(), Cost((50, 100, 200, 300), repeats=1), ["H"])
    assert found["num_atoms"] == [50, 100] and len(found["seconds"]) == len(found["memory"]) == 2
    assert "200 atoms and more are left out" in capsys.readouterr().out


def test_droplets_are_compact():
    atoms = droplet(500, ["H", "O"])
    assert len(atoms) == 500 and set(atoms.symbols) == {"H", "O"}
    radius = SPACING * (3 * 500 / (4 * np.pi)) ** (1 / 3)
    distances = np.linalg.norm(atoms.positions - atoms.positions.mean(0), axis=1)
    assert distances.max() < radius + 2 * SPACING
    between = atoms.get_all_distances()
    assert between[~np.eye(500, dtype=bool)].min() > 0.5 * SPACING


def test_sizes_are_checked():
    with pytest.raises(EFAError, match="num_atoms and repeats must be 1 or more"):
        Cost((0, 3))


def test_every_call_calculates_even_where_a_calculator_remembers():
    calls = []

    class Remembers(Calculator):
        implemented_properties = ["energy", "forces"]

        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            if self.calculation_required(atoms, list(properties)):
                super().calculate(atoms)
                calls.append(len(atoms))
                self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}

    measure(Remembers(), Cost((10, 20), repeats=2), ["H"])
    assert calls == [10] * 3 + [20] * 3
