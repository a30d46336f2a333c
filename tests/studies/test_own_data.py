"""The source `files`: labels and sets as ASE alone reads them, what is refused, and files that change."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("ase")

import ase
from ase import io
from ase.calculators.singlepoint import SinglePointCalculator

from efa_addons.errors import EFAError
from efa_addons.studies import cumulene, sources
from efa_addons.studies.common import ENERGY, FORCES
from efa_addons.studies.sources import files
from efa_addons.studies.study import Study


def structure(index: int, symbols: str = "OH2", **info) -> ase.Atoms:
    """With its index in energy, forces and position."""
    positions = np.arange(3.0 * len(ase.Atoms(symbols))).reshape(-1, 3) + index
    atoms = ase.Atoms(symbols, positions, info={ENERGY: -100.0 - index, "step": index, **info})
    atoms.arrays[FORCES] = positions / 10
    return atoms


def save(path: Path, structures: list[ase.Atoms] | int) -> str:
    path.parent.mkdir(exist_ok=True)
    io.write(path, [structure(i) for i in range(structures)] if isinstance(structures, int) else structures)
    return str(path)


def energies(structures) -> list[float]:
    return [atoms.info[ENERGY] for atoms in structures]


@pytest.fixture
def train(tmp_path):
    return save(tmp_path / "train.xyz", 20)


def test_sets_are_those_of_the_files(tmp_path, train):
    test = {"test": save(tmp_path / "test.xyz", 3), "far-away": save(tmp_path / "far.xyz", 2)}
    data = files.make(train, save(tmp_path / "valid.xyz", 4), test)
    assert {name: len(found) for name, found in data.sets.items()} == {"train": 20, "valid": 4, "test": 3, "far-away": 2}
    assert not data.scans
    for index, atoms in enumerate(data.sets["train"]):
        assert atoms.info == {ENERGY: -100 - index} and set(atoms.arrays) == {"numbers", "positions", FORCES}
        np.testing.assert_allclose(atoms.positions, structure(index).positions, atol=1e-8)
        np.testing.assert_allclose(atoms.arrays[FORCES], structure(index).positions / 10, atol=1e-8)
    folder = sources.write(tmp_path / "data", "files", {"train": train, "test": test})
    assert sources.evaluation_sets(folder) == ["test", "far-away"] and len(cumulene.read(folder, "far-away")) == 2


@pytest.mark.parametrize("name", ["labelled.xyz", "labelled.traj", "labelled.db", "labelled@1.json"])
def test_energies_and_forces_of_a_calculator_are_taken_by_their_names_in_ase(name, tmp_path):
    structures = []
    for index in range(5):
        atoms = structure(index)
        atoms.calc = SinglePointCalculator(atoms, energy=7.0 + index, forces=-atoms.positions)
        del atoms.info[ENERGY], atoms.arrays[FORCES]
        structures.append(atoms)
    path = save(tmp_path / name, structures)
    found = files.read(path, "energy", "forces")
    assert energies(found) == [7, 8, 9, 10, 11] and all(atoms.calc is None for atoms in found)
    np.testing.assert_allclose(found[2].arrays[FORCES], -structure(2).positions, atol=1e-8)
    with pytest.raises(
        EFAError, match=r"structure 0 .*no energy under the key REF_energy.*its calculator: .*energy_key: energy"
    ):
        files.read(path, ENERGY, FORCES)


def test_other_keys(tmp_path):
    path = save(tmp_path / "a.xyz", [structure(0, dft=-3.0)])
    assert energies(files.read(path, "dft", FORCES)) == [-3]


def test_what_is_drawn_is_disjoint_and_reproducible(tmp_path, train):
    first = files.make(train, valid_fraction=0.2, test_fraction=0.1).sets
    drawn = {name: energies(first[name]) for name in first}
    assert {name: len(found) for name, found in drawn.items()} == {"train": 14, "valid": 4, "test": 2}
    assert sorted(sum(drawn.values(), [])) == energies(files.read(train, ENERGY, FORCES))[::-1]
    again = files.make(train, valid_fraction=0.2, test_fraction=0.1).sets
    assert drawn == {name: energies(again[name]) for name in again}
    other = files.make(train, valid_fraction=0.2, test_fraction=0.1, seed=1).sets
    assert energies(other["test"]) != drawn["test"] and energies(other["valid"]) != drawn["valid"]
    # one set does not move another
    assert energies(files.make(train, valid_fraction=0.5).sets["test"]) == drawn["test"]
    valid = save(tmp_path / "valid.xyz", 3)
    with_file = files.make(train, valid, test_fraction=0.1).sets
    assert energies(with_file["test"]) == drawn["test"] and len(with_file["train"]) == 18


def test_tiny_takes_structures_from_all_over_the_file(tmp_path, train):
    tiny = sources.SOURCES["files"].tiny
    sets = files.make(train, **tiny).sets
    found = sorted(energies([*sets["train"], *sets["valid"], *sets["test"]]))[::-1]
    assert len(found) == 10 and found[0] == -100 and found[-1] == -119 and len(sets["train"]) == 8
    # and some with every element
    rare = [structure(i, "CO2" if i == 5 else "OH2") for i in range(40)]
    path, test = save(tmp_path / "rare.xyz", rare), save(tmp_path / "test.xyz", [structure(0, "CO2")])
    sets = files.make(path, valid=path, test=test, **tiny).sets
    assert len(sets["train"]) == 11 and -105.0 in energies(sets["train"])


def test_energies_of_atoms_are_subtracted(tmp_path):
    atomic = {"H": -13.5, "O": -2041.25}
    structures = [structure(i, symbols) for i, symbols in enumerate(["OH2", "O2", "H2", "OH", "OH2", "H2"])]
    bindings = [-9.0, -5.0, -4.0, -4.0, -9.5, -4.5]
    for atoms, binding in zip(structures, bindings, strict=True):
        atoms.info[ENERGY] = sum(atomic[symbol] for symbol in atoms.symbols) + binding
    path = save(tmp_path / "a.xyz", structures)
    parts = {"valid": path, "test": path}
    given = files.make(path, atomic_energies={**atomic, "He": 0.0}, **parts).sets
    assert energies(given["test"]) == pytest.approx(bindings) == energies(given["train"])
    fitted = files.make(path, atomic_energies="average", **parts).sets
    counts = np.array([[list(atoms.symbols).count(symbol) for symbol in "HO"] for atoms in structures])
    assert counts.T @ energies(fitted["train"]) == pytest.approx([0, 0], abs=1e-9)  # what is left of a least-squares fit
    assert energies(fitted["test"]) == energies(fitted["train"]) and np.ptp(energies(fitted["test"])) < 10
    for wrong, message in (
        ({"H": -13.5}, "atomic_energies has no O"),
        ("mean", "got 'mean'"),
        ({"H": "x", "O": 1}, "must map elements to energies"),
    ):
        with pytest.raises(EFAError, match=message):
            files.make(path, atomic_energies=wrong)


def test_a_set_along_a_coordinate_is_a_scan(tmp_path, train):
    shuffled = save(tmp_path / "scan.xyz", [structure(i) for i in (2, 0, 1)])
    parts = {"test": {"test": train, "path": shuffled}}
    data = files.make(train, scans={"path": {"x": "step", "label": "steps"}}, **parts)
    assert data.scans["path"].x == "step" and data.scans["path"].label == "steps"
    assert [atoms.info["step"] for atoms in data.sets["path"]] == [0, 1, 2] and energies(data.sets["path"]) == [
        -100,
        -101,
        -102,
    ]
    for scans, message in (
        ({"pat": {"x": "step", "label": "steps"}}, "evaluation set of scans 'pat' .did you mean 'path'"),
        ({"path": {"x": "step"}}, "path must have x, .* and label"),
        ({"path": {"x": "stepp", "label": "steps"}}, "structure 0 must have a number stepp"),
        (["path"], "scans must map"),
        ({"path": {"x": ["step"], "label": "steps"}}, "path must have x, a key in info, and label"),
    ):
        with pytest.raises(EFAError, match=message):
            files.make(train, scans=scans, **parts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.info.pop(ENERGY), "has no energy under the key REF_energy; its info: step; .* Set energy_key to"),
        (lambda atoms: atoms.arrays.pop(FORCES), "has no forces under the key REF_forces; its info: .*step. Set forces_key to"),
        (lambda atoms: atoms.info.update({ENERGY: "low"}), r": its energy \(key REF_energy\) must be a number, .*'low'"),
        (lambda atoms: atoms.info.update({ENERGY: np.nan}), ": its energy .* must be a number, all finite, got .*nan"),
        (lambda atoms: atoms.arrays.update({FORCES: np.zeros((3, 2))}), r": its forces .* must be numbers of shape \(3, 3\)"),
        (lambda atoms: (atoms.set_cell([9, 9, 9]), atoms.set_pbc([0, 0, 1])), r"is periodic \(pbc F F T\).*set pbc to false"),
    ],
)
def test_structures_that_cannot_serve_are_named(change, message, tmp_path):
    structures = [structure(i) for i in range(4)]
    change(structures[2])
    path = save(tmp_path / "some.xyz", structures)
    with pytest.raises(EFAError, match=rf"(?s){re.escape(path)}: structure 2 \(counted from 0; H2O\).*{message}"):
        files.read(path, ENERGY, FORCES)
    files.read(path, ENERGY, FORCES, limit=2)  # the first and the last are as they should be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": {"far": "TRAIN"}}, "one of several sets must be called test, got far"),
        ({"test": {}}, "must be called test, got none"),
        ({"test": {"test": "TRAIN", "valid": "TRAIN"}}, "other than train and valid, got 'valid'"),
        ({"test": {"test": "TRAIN", "a/b": "TRAIN"}}, "letters, digits.*got 'a/b'"),
        ({"test": {"test": "TRAIN", 300: "TRAIN"}}, "got 300"),
        ({"valid": {"valid": "TRAIN"}}, "valid must be the path of a file, got {"),
        ({"train": None}, "train must be the path of a file, got None"),
        ({"valid_fraction": 0.0}, "valid_fraction must lie between 0 and 1, got 0.0"),
        ({"test_fraction": 1.5}, "test_fraction must lie between 0 and 1, got 1.5"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "20 structures, too few to draw 10 for valid and 10 for test"),
        ({"limit": 1}, "1 structure, too few to draw 1 for valid and 1 for test"),
        ({"limit": 0}, "limit, .* must be a positive integer or null, got 0"),
        ({"test": "OTHER"}, "set test has C; the training set has H, O only"),
        ({"train": "EMPTY"}, r"ASE cannot read .*empty\.xyz"),
        ({"test": "TEXT"}, r"ASE cannot read .*text\.xyz"),
        ({"valid": "NONE"}, r"none\.extxyz has no structure"),
    ],
)
def test_sets_that_cannot_serve_are_refused(options, message, tmp_path, train, monkeypatch):
    (tmp_path / "empty.xyz").write_text("")
    (tmp_path / "text.xyz").write_text("energies of water\n")
    save(tmp_path / "other.xyz", [structure(0, "CO2")])
    (tmp_path / "none.extxyz").write_text("\n")
    paths = {"TRAIN": train, **{name.upper(): str(tmp_path / f"{name}.xyz") for name in ("empty", "text", "other")}}
    paths["NONE"] = str(tmp_path / "none.extxyz")

    def located(value):
        return {key: located(entry) for key, entry in value.items()} if isinstance(value, dict) else paths.get(value, value)

    with pytest.raises(EFAError, match=f"(?s){message}"):
        files.make(**{"train": train, **located(options)})


CONTENT = {
    "title": "Mine",
    "question": "Does it help?",
    "variants": {"without EFA": {}},
}


def study(folder: Path, base: dict | None = None, **options) -> Path:
    path = folder / "mine.yaml"
    content = {**CONTENT, "data": {"mine": {"source": "files", **options}}, **({"base": {"data": base}} if base else {})}
    path.write_text(yaml.safe_dump(content))
    return path


def test_relative_paths_begin_at_the_folder_of_the_studys_file(tmp_path, train, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    save(tmp_path / "elsewhere" / "train.xyz", 3)
    monkeypatch.chdir(tmp_path / "elsewhere")
    path = study(tmp_path, train="train.xyz", test={"test": "elsewhere/train.xyz", "all": train})
    for given in (path, Path("../mine.yaml")):
        options = Study.load(given).data[0].options
        assert all(Path(found).is_absolute() for found in (options["train"], *options["test"].values()))
        data = sources.SOURCES["files"].make(**options)
        assert [len(data.sets[name]) for name in ("test", "all")] == [3, 20]
        assert len(data.sets["train"]) == 18
    based = Study.load(study(tmp_path, base={"source": "files", "train": "train.xyz"}, train=train)).base
    assert Path(based.data.options["train"]).samefile(train)
    content = yaml.safe_load(study(tmp_path, train="train.xyz").read_text())
    with pytest.raises(EFAError, match="data: mine: train must be an absolute path.*got 'train.xyz'"):
        Study.from_dict("mine", content, "quick")
    content["data"]["mine"] |= {"train": train, "test": train}
    assert Study.from_dict("mine", content, "quick").data[0].options["train"] == train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "data: mine: missing: train"),
        ({"train": "trian.xyz"}, r"data: mine: train: there is no file .*trian\.xyz\. Relative paths begin at the folder"),
        ({"train": "train.xyz", "test": {"test": "no.xyz"}}, r"data: mine: test: test: there is no file .*no\.xyz"),
        ({"train": "."}, "there is no file"),
        ({"train": ["train.xyz"]}, "data: mine: train must be the path of a file, got \\['train.xyz'\\]"),
        ({"train": "train.xyz", "tets": "a.xyz"}, "unknown option of files 'tets' .did you mean 'test'"),
        ({"train": "train.xyz", "energy_key": 3}, "data: mine: energy_key must be text, got 3"),
        ({"train": "train.xyz", "valid_fraction": "0.1"}, "data: mine: valid_fraction must be a number"),
    ],
)
def test_wrong_options_are_refused_with_the_study(options, message, tmp_path, train):
    with pytest.raises(EFAError, match=rf"(?s)mine\.yaml: .*{message}"):
        Study.load(study(tmp_path, **options))


def test_structures_that_are_trained_on_and_evaluated_are_counted(tmp_path, train, capsys):
    moved = [structure(i) for i in (3, 4, 30)]
    moved[1].positions[0, 0] += 0.01
    moved[0].positions += 1e-6
    valid = save(tmp_path / "valid.xyz", 2)
    sources.write(tmp_path / "mine", "files", {"train": train, "valid": valid, "test": save(tmp_path / "test.xyz", moved)})
    found = capsys.readouterr().out.splitlines()
    assert (
        len(found) == 1 and "mine: structures that are in the training set, too: 2 of 2 in valid, 1 of 3 in test;" in found[0]
    )
    sources.write(tmp_path / "drawn", "files", {"train": train})
    assert capsys.readouterr().out == ""
    twice = save(tmp_path / "twice.xyz", 20 * [structure(0)])
    sources.write(tmp_path / "drawn", "files", {"train": twice})
    assert "2 of 2 in valid, 2 of 2 in test" in capsys.readouterr().out


def test_data_are_made_anew_when_a_file_has_changed(tmp_path, train):
    valid, test = save(tmp_path / "valid.xyz", 2), save(tmp_path / "test.xyz", 2)
    options = {"train": train, "valid": valid, "test": {"test": test}}

    def written() -> tuple[int, float]:
        folder = sources.write(tmp_path / "data", "files", options)
        return (folder / "train.xyz").stat().st_mtime_ns, energies(cumulene.read(folder, "test"))[0]

    first = written()
    io.write(train, io.read(train, ":"))  # the same content
    assert written() == first
    for name in ("train", "valid", "test"):
        before = written()
        save(tmp_path / f"{name}.xyz", [structure(i + 1) for i in range(20)])
        after = written()
        assert after[0] != before[0] and after[1] == (-101 if name == "test" else -100)
