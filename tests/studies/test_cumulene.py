"""Cumulene data: geometry, labels against finite differences, the relaxed scan, and the same files for the same seed."""

import json
import math

import numpy as np
import pytest

pytest.importorskip("ase")

from efa_addons.studies import cumulene as study

SHAPE = study.Shape(bonds=(1.31, 1.27, 1.28, 1.275), ch=1.08, hcc=math.radians(121.5))


def test_geometry_has_the_lengths_and_angles_of_the_shape():
    positions = study.cumulene(0.7, SHAPE).positions
    chain, low, high = positions[:9], positions[9:11], positions[11:]
    np.testing.assert_allclose(np.linalg.norm(np.diff(chain, axis=0), axis=1), [*SHAPE.bonds, *SHAPE.bonds[::-1]])
    for hydrogens, end, neighbour in ((low, chain[0], chain[1]), (high, chain[-1], chain[-2])):
        np.testing.assert_allclose(np.linalg.norm(hydrogens - end, axis=1), SHAPE.ch)
        cosines = (hydrogens - end) @ (neighbour - end) / SHAPE.ch / np.linalg.norm(neighbour - end)
        np.testing.assert_allclose(np.arccos(cosines), SHAPE.hcc)


@pytest.mark.parametrize("twist", [0.0, 0.3, math.pi / 2, 2.5])
def test_twist_is_the_angle_between_the_planes(twist):
    assert study.twist_of(study.cumulene(twist, SHAPE)) == pytest.approx(min(twist, math.pi - twist), abs=1e-7)


@pytest.mark.parametrize("num_carbons", [3, 4, 5, 8])
def test_other_lengths(num_carbons):
    atoms = study.cumulene(0.4, num_carbons=num_carbons)
    assert atoms.get_chemical_formula() == f"C{num_carbons}H4"
    assert study.twist_of(atoms) == pytest.approx(0.4)


def test_wrong_number_of_bonds():
    with pytest.raises(ValueError, match="5 carbons need 2 unique bond lengths, got 4"):
        study.cumulene(0.0, SHAPE, num_carbons=5)


def test_samples_are_decided_by_the_seed():
    first, again, other = (study.sample([SHAPE, SHAPE], 4, seed) for seed in (3, 3, 4))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a.positions, b.positions)
        assert np.abs(a.positions - c.positions).max() > 0.1


def test_samples_cover_both_senses_and_are_displaced():
    atoms = study.sample([SHAPE, SHAPE], 100, 0)
    twists = np.array([a.info[study.TWIST] for a in atoms])
    assert twists.min() < 0.2 and twists.max() > 2.9
    # a C-C length changes by sqrt(2) times the displacement along the bond
    bonds = np.array([np.linalg.norm(np.diff(a.positions[:9], axis=0), axis=1) for a in atoms])
    assert np.std(bonds, axis=0).mean() == pytest.approx(math.sqrt(2) * study.DISPLACEMENT, rel=0.1)


def test_missing_package_says_what_to_install():
    with pytest.raises(ImportError, match=r'pip install "efa-addons\[data\]"'):
        study.require("a_package_that_does_not_exist", "data")


def test_forces_are_the_gradient_of_the_energy():
    pytest.importorskip("tblite")
    (atoms,) = study.sample([SHAPE, SHAPE], 1, 0)
    forces, step = study.label(atoms).arrays[study.FORCES], 1e-3
    for atom, axis in ((0, 2), (4, 0), (9, 1), (12, 2)):
        energies = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[atom, axis] += sign * step
            energies.append(study.label(moved).info[study.ENERGY])
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=1e-3)


def test_energy_is_symmetric_in_the_twist():
    pytest.importorskip("tblite")
    energies = [study.label(study.cumulene(twist, SHAPE)).info[study.ENERGY] for twist in (0.5, -0.5, math.pi - 0.5)]
    np.testing.assert_allclose(energies, energies[0], atol=1e-6)


def test_relaxed_scan_has_its_minimum_at_90_degrees_and_no_jumps():
    pytest.importorskip("tblite")
    structures, shapes = study.relaxed_scan(num_twists=5)
    energies = np.array([atoms.info[study.ENERGY] for atoms in structures])
    assert np.all(np.diff(energies) < 0)
    assert energies[0] - energies[-1] == pytest.approx(0.846, abs=0.01)
    assert np.abs(np.diff([shape.vector for shape in shapes], axis=0)).max() < 0.01


def test_make_writes_once_and_the_same_for_the_same_seed(tmp_path):
    pytest.importorskip("tblite")
    sizes = {"num_train": 3, "num_test": 2, "num_twists": 2}
    first, second, other = (study.make(tmp_path / name, seed=seed, **sizes) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    for name in study.FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert (first / "train.xyz").read_bytes() != (other / "train.xyz").read_bytes()
    assert json.loads((first / "data.json").read_text())["num_train"] == 3

    train = first / "train.xyz"
    before = train.stat().st_mtime_ns
    study.make(first, seed=0, **sizes)
    assert train.stat().st_mtime_ns == before
    study.make(first, seed=1, **sizes)
    assert train.read_bytes() == (other / "train.xyz").read_bytes()

    structures = study.read(first, "train")
    assert len(structures) == 3 and not structures[0].pbc.any()
    assert structures[0].info[study.ENERGY] < 0 and structures[0].arrays[study.FORCES].shape == (13, 3)
