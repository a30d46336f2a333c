"""Sources of data: energies against plain sums of the formulas and against tblite, forces, splits, what sets promise."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ase")

import ase

import efa_addons
from efa_addons.errors import EFAError
from efa_addons.studies import cumulene, sources
from efa_addons.studies.common import ENERGY, FORCES, label
from efa_addons.studies.sources import charge_dipole, clusters, dimers, nacl, sn2
from efa_addons.studies.study import SIZES, Study

STUDIES = sorted((Path(__file__).parents[2] / "configs" / "studies").glob("*.yaml"))
FORMULAS = ("two_atoms", "clusters", "charge_dipole", "nacl")
LABELLED = ("cumulenes", "sn2", "dimers")
MADE = (*FORMULAS, *LABELLED)  # of no file


@pytest.fixture(scope="module")
def tiny():
    """name -> data of a handful of structures, each made once."""
    made = {}

    def get(name: str) -> sources.Data:
        if name in LABELLED:
            pytest.importorskip("tblite")
        if name not in made:
            made[name] = sources.SOURCES[name].make(**sources.SOURCES[name].tiny)
        return made[name]

    return get


def pairs(positions):
    return [(i, j, math.dist(positions[i], positions[j])) for j in range(len(positions)) for i in range(j)]


def two_atoms_energy(numbers, positions):
    return sum(12 / 11 * (r**-12 - 1 / r) for _, _, r in pairs(positions))


def clusters_energy(numbers, positions):
    return sum(2 * (r**-6 - 1 / r) for _, _, r in pairs(positions))


def nacl_energy(numbers, positions):
    charge, radius = {11: 1, 17: -1}, {11: 0.95, 17: 1.81}
    energy = 0.0
    for i, j, r in pairs(positions):
        z, other = numbers[i], numbers[j]
        energy += 14.3996 * charge[z] * charge[other] * math.erf(r / 2) / r
        energy += 30 * math.exp(-r / (0.25 * (radius[z] + radius[other])))
    return energy


def charge_dipole_energy(numbers, positions):
    charge, tail, head = positions
    length, apart = math.dist(head, tail), charge - (head + tail) / 2
    cosine = (head - tail) @ apart / length / np.linalg.norm(apart)
    return 10 * cosine / (apart @ apart) + charge_dipole.STIFFNESS / 2 * (length - 0.2) ** 2


@pytest.mark.parametrize("name", FORMULAS)
def test_energies_are_the_formula_and_forces_its_gradient(name, tiny):
    energy, step = globals()[f"{name}_energy"], 1e-5
    sets = tiny(name).sets
    for atoms in [sets[key][0] for key in sets]:
        assert atoms.info[ENERGY] == pytest.approx(energy(atoms.numbers, atoms.positions), abs=1e-10)
        numerical = np.zeros_like(atoms.positions)
        for entry in np.ndindex(*numerical.shape):
            shift = np.zeros_like(numerical)
            shift[entry] = step
            ends = [energy(atoms.numbers, atoms.positions + sign * shift) for sign in (1, -1)]
            numerical[entry] = (ends[1] - ends[0]) / (2 * step)
        np.testing.assert_allclose(atoms.arrays[FORCES], numerical, atol=1e-7)


@pytest.mark.parametrize(("name", "charge"), [("cumulenes", 0), ("sn2", -1), ("dimers", -1)])
def test_labels_are_those_of_tblite(name, charge, tiny):
    data = tiny(name)
    calculator = pytest.importorskip("tblite.ase").TBLite
    zeros = []
    for atoms in [*data.sets["test"], *data.sets["train"][:1]]:
        # a calculator that has seen another structure starts, and so ends, elsewhere
        bare = ase.Atoms(atoms.numbers, atoms.positions)
        bare.calc = calculator(method="GFN2-xTB", charge=charge, verbosity=0)
        zeros.append(bare.get_potential_energy() - atoms.info[ENERGY])
        np.testing.assert_allclose(atoms.arrays[FORCES], bare.get_forces(), atol=1e-6)
    # one constant for all of the same composition
    np.testing.assert_allclose(zeros, zeros[0], atol=1e-6)
    assert abs(zeros[0]) > 100


@pytest.mark.parametrize("name", MADE)
def test_sets_are_disjoint_and_stay_when_the_training_set_grows(name, tiny):
    data, options = tiny(name), dict(sources.SOURCES[name].tiny)
    everything = np.array([atoms.info[ENERGY] for key in ("train", "valid", "test") for atoms in data.sets[key]])
    assert len(np.unique(everything.round(9))) == len(everything)
    more = [num + 1 for num in options["num_train"]] if name == "nacl" else options["num_train"] + 1
    larger = sources.SOURCES[name].make(**{**options, "num_train": more})
    assert len(larger.sets["train"]) > len(data.sets["train"])
    kept = larger.sets["train"][: options["num_train"][0] if name == "nacl" else options["num_train"]]
    for before, after in (
        (data.sets["valid"], larger.sets["valid"]),
        (data.sets["test"], larger.sets["test"]),
        (kept, data.sets["train"]),
    ):
        for a, b in zip(before, after, strict=name != "nacl"):
            np.testing.assert_array_equal(a.positions, b.positions)
            assert a.info[ENERGY] == b.info[ENERGY]
    if name in FORMULAS:
        other = sources.SOURCES[name].make(**{**options, "seed": 1})
        assert all(a.info[ENERGY] != b.info[ENERGY] for a, b in zip(data.sets["test"], other.sets["test"], strict=True))


@pytest.mark.parametrize("name", MADE)
def test_scans_go_along_their_coordinate(name, tiny):
    data = tiny(name)
    assert set(data.scans) <= set(data.sets) and {"train", "valid", "test"} <= set(data.sets)
    for key, scan in data.scans.items():
        x = np.array([atoms.info[scan.x] for atoms in data.sets[key]])
        assert np.all(np.diff(x) > 0)
        assert scan.analysis in ("barrier", "power_law", "none") and scan.align in ("mean", "last", "none")
        assert (scan.tail is not None) == (scan.analysis == "power_law")


def test_two_atoms_are_where_they_say(tiny):
    data = sources.SOURCES["two_atoms"].make(num_train=300, num_valid=1, num_test=1)
    distances = np.array([math.dist(*atoms.positions) for atoms in data.sets["train"]])
    assert 1 < distances.min() < 1.2 and 9.8 < distances.max() < 10
    assert {tuple(atoms.numbers) for atoms in data.sets["train"]} == {(1, 2)}
    for atoms in data.sets["scan"]:
        assert atoms.info["distance"] == pytest.approx(math.dist(*atoms.positions))
    assert data.sets["scan"][0].info[ENERGY] == pytest.approx(0)


@pytest.mark.parametrize(("num_atoms", "radius"), [(32, 5.0), (16, 2.5)])
def test_clusters_fit_their_ball(num_atoms, radius):
    rng = np.random.default_rng(0)
    for positions in [clusters.place(rng, num_atoms, radius) for _ in range(8)]:
        distances = [r for *_, r in pairs(positions)]
        assert len(positions) == num_atoms
        assert min(distances) > clusters.CLOSEST and radius < max(distances) < 2 * radius
        # droplets: most atoms have a neighbour near the minimum of the attraction
        nearest = [min(r for i, j, r in pairs(positions) if atom in (i, j)) for atom in range(num_atoms)]
        assert np.median(nearest) == pytest.approx(clusters.BOND, abs=0.12)


def test_atoms_that_do_not_fit_are_an_error(monkeypatch):
    with pytest.raises(EFAError, match=r"64 atoms 1\.0 apart and more do not fit into a ball of radius 2\.0"):
        clusters.make(num_atoms=64, radius=2.0, num_train=1)
    monkeypatch.setattr(clusters, "TRIES", 20)
    monkeypatch.setattr(clusters, "CLOSEST", 3.0)
    with pytest.raises(
        EFAError, match=r"2 atoms in a ball of radius 2\.0 came nearer than 3\.0 or left it, in each of 20 tries"
    ):
        clusters.make(num_atoms=2, radius=2.0, num_train=1)


def test_dimers_at_distances_that_cannot_be_are_an_error():
    part = ase.Atoms("F", info={"charge": -1, ENERGY: 0.0})
    with pytest.raises(EFAError, match=r"F and F 0\.5 to 1\.0 Å apart have atoms nearer than 1\.7 Å"):
        dimers._Pair(part, part, (0.5, 1.0)).sample(np.random.default_rng(0))


def test_a_relaxation_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr("scipy.optimize.minimize", lambda *given, **options: SimpleNamespace(jac=np.ones(1), message="Lost."))
    with pytest.raises(EFAError, match=r"relaxation of hf by GFN2-xTB did not converge: Lost\. Its largest gradient is 1,"):
        dimers.relaxed_part("hf")


def test_rotation_is_the_angle_between_dipole_and_charge(tiny):
    data = tiny("charge_dipole")
    for atoms in data.sets["rotation"]:
        assert np.linalg.norm(atoms.positions[0]) == pytest.approx(charge_dipole.ROTATED_AT)
        assert atoms.info[ENERGY] == pytest.approx(10 * np.cos(np.radians(atoms.info["angle"])) / 64, abs=1e-12)
    for atoms in data.sets["distance"]:
        assert atoms.info[ENERGY] == pytest.approx(10 / atoms.info["distance"] ** 2)
    # the charge is out of a small cutoff's reach
    apart = [np.linalg.norm(atoms.positions[1:] - atoms.positions[0], axis=1).min() for atoms in data.sets["train"]]
    assert min(apart) > 3.8


def test_ions_are_as_neutral_as_can_be_and_in_their_ball():
    data = sources.SOURCES["nacl"].make(num_train=[2, 1, 0], num_valid=[1, 0, 0], num_test=[1, 1, 1])
    assert [len(atoms) for atoms in data.sets["train"]] == [39, 39, 132]
    assert len(data.sets["test"]) == 3
    for size, charge, diameter in ((39, -1, 10), (132, 0, 15), (314, 0, 20)):
        (atoms,) = data.sets[f"test_{size}"]
        assert sum(nacl.CHARGES[number] for number in atoms.numbers) == charge
        distances = atoms.get_all_distances()[np.triu_indices(size, 1)]
        assert distances.min() > 1.5 and 0.9 * diameter < distances.max() < diameter + 1


def test_lists_of_ions_must_agree():
    with pytest.raises(
        EFAError, match=r"num_test of nacl must have one entry for each of the sizes \[39, 132, 314\], got \[1\]"
    ):
        sources.SOURCES["nacl"].make(num_test=[1])


def test_barriers_fall_with_the_length_of_the_chain():
    pytest.importorskip("tblite")
    numbers = {"num_train": 1, "num_valid": 1, "num_test": 1}
    data = sources.SOURCES["cumulenes"].make(num_carbons=[5, 9], num_twists=2, **numbers)
    barriers = []
    for length in (5, 9):
        first, last = data.sets[f"scan_{length}"]
        assert math.degrees(cumulene.twist_of(last)) == pytest.approx(last.info["degrees"]) == pytest.approx(90)
        assert last.info[ENERGY] == 0
        barriers.append(first.info[ENERGY])
    assert barriers == pytest.approx([1.49, 0.846], abs=0.01)
    assert [len(atoms) for atoms in data.sets["train"]] == [9, 13]


def test_the_reaction_is_symmetric_and_follows_its_coordinate(tiny):
    scan = tiny("sn2").sets["scan"]
    for atoms in scan:
        to_entering, to_leaving = (math.dist(atoms.positions[0], atoms.positions[i]) for i in (1, 2))
        assert to_leaving - to_entering == pytest.approx(atoms.info[sn2.COORDINATE])
        # relaxed at a fixed coordinate: what is left of the forces pulls X and Y against each other only
        assert np.abs(atoms.arrays[FORCES][3:]).max() < 2e-3
    energies = [atoms.info[ENERGY] for atoms in scan]
    assert energies == pytest.approx(energies[::-1], abs=1e-4)
    assert energies[2] > energies[0] + 0.2


def test_far_apart_the_reaction_has_the_energy_of_ion_and_molecule():
    pytest.importorskip("tblite")
    shapes = sn2.path(("C", "Cl", "Cl", "H", "H", "H"), np.array([-14.0]))
    far = sn2.build(("C", "Cl", "Cl", "H", "H", "H"), -14.0, shapes[0])
    assert np.linalg.norm(far.positions[1] - far.positions[0]) > 15
    zero = label(far[[1]], -1).info[ENERGY] + label(far[[0, 2, 3, 4, 5]]).info[ENERGY]
    assert label(far, -1, zero).info[ENERGY] == pytest.approx(0, abs=0.03)


# leading powers, and what the extension of molecules and GFN2-xTB's damping leave of them between 7 and 14 Å
@pytest.mark.parametrize(("name", "power"), [("f_f", 1), ("nh4_h2o", 2), ("cl_hf", 2), ("h2o_h2o", 3), ("hf_hf", 3)])
def test_dimers_decay_with_the_powers_of_their_multipoles(name, power):
    pytest.importorskip("tblite")
    numbers = {"num_train": 1, "num_valid": 1, "num_test": 1, "num_scan": 7}
    data = sources.SOURCES["dimers"].make(dimers=[name], **numbers)
    scan = data.sets[f"scan_{name}"]
    x, energies = np.array([(atoms.info[dimers.DISTANCE], atoms.info[ENERGY]) for atoms in scan]).T
    low, high = data.scans[f"scan_{name}"].tail
    tail = (x >= low) & (x <= high)
    slope = np.polyfit(np.log(x[tail]), np.log(np.abs(energies[tail])), 1)[0]
    assert -slope == pytest.approx(power, rel=0.06)
    # like charges repel; the others lie head to tail
    assert (energies[tail] > 0).all() == (name == "f_f")


def test_parts_of_dimers_are_relaxed_and_keep_apart():
    pytest.importorskip("tblite")
    for name, dipole in (("h2o", True), ("hf", True), ("nh4", False)):
        part = dimers.relaxed_part(name)
        assert np.abs(part.arrays[FORCES]).max() < 2e-3
        hydrogens = part.positions[1:].mean(axis=0) - part.positions[0]
        assert np.abs(hydrogens[:2]).max() < 1e-3 and (hydrogens[2] > 0.3) == dipole
    pair = dimers._Pair(dimers.relaxed_part("hf"), dimers.relaxed_part("hf"), (2.5, 3.0))
    rng = np.random.default_rng(0)
    for atoms in [pair.sample(rng) for _ in range(10)]:
        assert np.linalg.norm(atoms.positions[:2, None] - atoms.positions[2:], axis=-1).min() > dimers.CONTACT
        assert math.dist(atoms.positions[0], atoms.positions[2]) == pytest.approx(atoms.info[dimers.DISTANCE])


def test_unknown_dimer():
    with pytest.raises(EFAError, match="unknown dimer 'h2o_hf'.*known: cl_hf"):
        sources.SOURCES["dimers"].make(dimers=["h2o_hf"])


def test_charges_that_are_not_found_are_an_error_that_says_so():
    pytest.importorskip("tblite")
    atoms = ase.Atoms("NaOH2", [(0, 0, 0), (0, 0, 8), (0.76, 0, 8.59), (-0.76, 0, 8.59)])
    with pytest.raises(EFAError, match="no self-consistent charges for H2NaO of total charge 1"):
        label(atoms, 1)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_studies_load_and_their_tiny_data_are_made(path, tmp_path):
    studies = {size: Study.load(path, size) for size in SIZES}
    assert len({study.hosts for study in studies.values()}) == 1
    assert not studies["paper"].host_training  # budgets of the quick size would be kept
    for study in studies.values():
        variants = {variant.label: variant for variant in study.variants}
        assert variants["without EFA"].efa is None
        control = dict(variants["control"].efa)
        assert control.pop("emulate") is True
        assert control in [variant.efa for variant in study.variants]
        longest = [variant.efa["max_length"] for variant in study.variants if variant.efa]
        assert len(set(longest)) == 1
    for spec in studies["tiny"].data:
        if spec.source in LABELLED:
            pytest.importorskip("tblite")
        folder = sources.write(tmp_path / spec.name, spec.source, spec.options)
        scans = sources.scans(folder)
        assert sources.evaluation_sets(folder)[0] == "test" and set(scans) <= set(sources.evaluation_sets(folder))
        for name in ("train", "valid", *sources.evaluation_sets(folder)):
            structures = cumulene.read(folder, name)
            assert structures and not any(atoms.pbc.any() for atoms in structures)
            extent = max(atoms.get_all_distances().max() for atoms in structures)
            assert extent < longest[0]
            assert all(atoms.arrays[FORCES].shape == (len(atoms), 3) and ENERGY in atoms.info for atoms in structures)
        # made once
        before = (folder / "train.xyz").stat().st_mtime_ns
        sources.write(folder, spec.source, spec.options)
        assert (folder / "train.xyz").stat().st_mtime_ns == before


def test_every_source_is_tested():
    assert {*MADE, "files"} == {*sources.SOURCES}  # files: test_own_data.py


def test_sources_are_known_without_ase_and_tblite(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("efa_addons.studies")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("ase", "tblite"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(efa_addons, "studies", efa_addons.studies)  # is bound anew
    found = importlib.import_module("efa_addons.studies.sources").SOURCES
    assert set(found) == set(sources.SOURCES) and "farthest" in found["sn2"].options
    with pytest.raises(ImportError, match=r'pip install "efa-addons\[data\]"'):
        found["two_atoms"].make()
