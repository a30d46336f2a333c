"""The user's own structures, from files of any format that ASE reads. Energies eV, forces eV/Å, lengths Å.

Of a structure its elements, positions, energy and forces are taken, and nothing else: what further columns and keys mean to one
host (weights, heads, isolated atoms) must not make its training another's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from efa_addons.errors import EFAError, unknown_names
from efa_addons.studies.common import ENERGY, FORCES, labelled, require
from efa_addons.studies.sources.base import Data, Scan

if TYPE_CHECKING:
    from ase import Atoms

AVERAGE = "average"


def make(
    train: str,
    valid: str | None = None,
    test: str | Mapping[str, str] | None = None,
    seed: int = 0,
    valid_fraction: float = 0.1,
    test_fraction: float = 0.1,
    energy_key: str = ENERGY,
    forces_key: str = FORCES,
    atomic_energies: str | Mapping[str, float] | None = None,
    scans: Mapping[str, Mapping[str, str]] | None = None,
    limit: int | None = None,
) -> Data:
    """The sets in files.

    Args:
        train, valid, test: paths; `test` may map names of several sets, one of them test, to theirs.
        seed, valid_fraction, test_fraction: of the structures of `train` so many are drawn for a set that has no file.
        energy_key, forces_key: in info and arrays, or, as ASE's own "energy" and "forces", among a calculator's results.
        atomic_energies: element -> eV, subtracted for each atom; "average": as fit those of the training set best.
        scans: evaluation set -> x, the key in info of the coordinate it lies along, and label, of the axis.
        limit: so many structures of each file, spread over it, and as many more as it takes to have every element; none given:
            all.

    Raises:
        EFAError: a file that cannot be read or is empty; a structure that is periodic or lacks energy or forces; an element
            that the training set lacks; sets too small to be split.
    """
    for name, fraction in (("valid_fraction", valid_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise EFAError(f"{name} must lie between 0 and 1, got {fraction}.")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise EFAError(f"limit, of structures of each file, must be a positive integer or null, got {limit!r}.")
    scans = {} if scans is None else scans
    if not isinstance(scans, Mapping):
        raise EFAError(f"scans must map evaluation sets to x and label, got {scans!r}.")
    for name, entry in scans.items():
        if (
            not isinstance(entry, Mapping)
            or set(entry) != {"x", "label"}
            or not all(isinstance(e, str) for e in entry.values())
        ):
            raise EFAError(f"scans: {name} must have x, a key in info, and label, the text at the axis, got {entry!r}.")
    coordinates = [entry["x"] for entry in scans.values()]
    if isinstance(test, Mapping):
        _check_names(test)
    files = {"train": train, "valid": valid, **(test if isinstance(test, Mapping) else {"test": test})}
    given = {name: path for name, path in files.items() if path is not None}
    if wrong := [name for name in {"train", *given} if not isinstance(given.get(name), str)]:
        raise EFAError(f"{wrong[0]} must be the path of a file, got {given.get(wrong[0])!r}.")
    sets = {name: read(path, energy_key, forces_key, limit, coordinates) for name, path in given.items()}
    missing = {name: fraction for name, fraction in (("valid", valid_fraction), ("test", test_fraction)) if name not in sets}
    sets |= split(sets["train"], seed, missing, train)
    _check_elements(sets)
    zeros = _zeros(atomic_energies, sets["train"])
    for atoms in (atoms for structures in sets.values() for atoms in structures):
        atoms.info[ENERGY] -= sum(zeros.get(symbol, 0.0) for symbol in atoms.symbols)
    return Data(sets, {name: _scan(name, entry, sets) for name, entry in scans.items()})


def read(path: str, energy_key: str, forces_key: str, limit: int | None = None, kept: Sequence[Any] = ()) -> list[Atoms]:
    """The labelled structures of a file, with those of the keys `kept` of their info that they have."""
    ase, io = require("ase", "data"), require("ase.io", "data")
    try:
        structures = io.read(path, index=":", do_not_split_by_at_sign=True)
    except Exception as error:  # every format has its own
        raise EFAError(
            f"ASE cannot read {path} ({type(error).__name__}: {error}). Expected are structures in a format that it knows, for "
            "example extended XYZ."
        ) from error
    if not structures:
        raise EFAError(f"{path} has no structure: give a file with one or more, or leave it out.")
    result = []
    for index in range(len(structures)) if limit is None else _some(structures, limit):
        atoms = structures[index]
        where = f"{path}: structure {index} (counted from 0; {atoms.get_chemical_formula()})"
        if atoms.pbc.any():
            raise EFAError(
                f"{where} is periodic (pbc {' '.join('FT'[int(flag)] for flag in atoms.pbc)}); EFA serves structures without "
                "periodic boundaries only. Of a molecule alone in a box set pbc to false (in extended XYZ "
                'pbc="F F F": a Lattice without it counts as periodic); leave other structures out.'
            )
        info = {key: atoms.info[key] for key in kept if key in atoms.info}
        bare = ase.Atoms(numbers=atoms.numbers, positions=atoms.positions, info=info)
        energy = _label(atoms, energy_key, "energy", atoms.info, (), where)
        forces = _label(atoms, forces_key, "forces", atoms.arrays, (len(atoms), 3), where)
        result.append(labelled(bare, float(energy), forces))
    return result


def _some(structures: Sequence[Atoms], limit: int) -> list[int]:
    """So many spread over the file, which is often sorted, and the first with each element, so that none is missing."""
    spread = np.linspace(0, len(structures) - 1, min(limit, len(structures))).round().astype(int)
    first: dict[str, int] = {}
    for index, atoms in enumerate(structures):
        for symbol in atoms.symbols:
            first.setdefault(symbol, index)
    return sorted({*spread.tolist(), *first.values()})


def split(structures: Sequence[Atoms], seed: int, fractions: Mapping[str, float], path: str) -> dict[str, list[Atoms]]:
    """Sets drawn by `seed`, disjoint, and "train" of the rest, each in the order of the file. One does not move another."""
    numbers = {name: max(1, round(fraction * len(structures))) for name, fraction in fractions.items()}
    if sum(numbers.values()) >= len(structures):
        wanted = " and ".join(f"{number} for {name}" for name, number in numbers.items())
        raise EFAError(
            f"{path} has {len(structures)} structure{'s'[: len(structures) != 1]}, too few to draw {wanted} from and to "
            "train on the rest: give files for these sets, smaller fractions, or more structures."
        )
    order = np.random.default_rng(seed).permutation(len(structures))
    num_test, end = numbers.get("test", 0), len(structures) - numbers.get("valid", 0)
    drawn = {"test": order[:num_test], "valid": order[end:], "train": order[num_test:end]}
    return {name: [structures[i] for i in np.sort(drawn[name])] for name in (*fractions, "train")}


def _label(atoms: Atoms, key: str, own: str, place: Mapping[str, Any], shape: tuple[int, ...], where: str) -> np.ndarray:
    """Energy or forces (`own`, ASE's name of them) of a structure: under `key` in `place`, or in its calculator's results."""
    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    value = place.get(key, results.get(key))
    if value is None:
        found = {
            "info": [name for name in atoms.info],
            "arrays": [name for name in atoms.arrays if name not in ("numbers", "positions")],
            "calculator": [name for name in results if results[name] is not None],
        }
        said = "; ".join(f"its {name}: {', '.join(map(str, names))}" for name, names in found.items() if names)
        raise EFAError(
            f"{where} has no {own} under the key {key}; {said or 'it has no other keys'}. "
            + (f"Set {own}_key: {own}." if own in found["calculator"] else f"Set {own}_key to where the {own} stand.")
            + " A structure that has none must be left out."
        )
    try:
        result = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        result = np.array(np.nan)
    if shape == () and result.size == 1:
        result = result.reshape(())  # some programs' readers
    if result.shape != shape or not np.isfinite(result).all():
        expected = "a number" if shape == () else f"numbers of shape {shape}"
        raise EFAError(f"{where}: its {own} (key {key}) must be {expected}, all finite, got {value!r}.")
    return result


def _check_names(test: Mapping[Any, Any]) -> None:
    """That one set is called test, and that all can be names of files."""
    for name in test:
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name) or name in ("train", "valid"):
            raise EFAError(
                f"test: a set must have a name of letters, digits, _ and -, other than train and valid, got {name!r}."
            )
    if test.get("test") is None:
        raise EFAError(f"test: one of several sets must be called test, got {', '.join(test) or 'none'}.")


def _check_elements(sets: Mapping[str, Sequence[Atoms]]) -> None:
    found = {name: {symbol for atoms in structures for symbol in atoms.symbols} for name, structures in sets.items()}
    known = ", ".join(sorted(found["train"]))
    for name, symbols in found.items():
        if unknown := symbols - found["train"]:
            raise EFAError(
                f"set {name} has {', '.join(sorted(unknown))}; the training set has {known} only, and models know no "
                f"others. Add structures to train, or leave them out of {name}."
            )


def _zeros(given: str | Mapping[str, float] | None, train: Sequence[Atoms]) -> dict[str, float]:
    """Element -> eV."""
    symbols = sorted({symbol for atoms in train for symbol in atoms.symbols})
    if given is None:
        return {}
    if given == AVERAGE:
        counts = np.array([[list(atoms.symbols).count(symbol) for symbol in symbols] for atoms in train])
        energies = np.array([atoms.info[ENERGY] for atoms in train])
        return dict(zip(symbols, map(float, np.linalg.lstsq(counts, energies, rcond=None)[0]), strict=True))
    if not isinstance(given, Mapping) or any(isinstance(e, bool) or not isinstance(e, int | float) for e in given.values()):
        raise EFAError(f"atomic_energies must map elements to energies (eV), or be {AVERAGE} or null, got {given!r}.")
    if lacking := [symbol for symbol in symbols if symbol not in given]:
        raise EFAError(f"atomic_energies has no {', '.join(lacking)}, which the training set has.")
    return {symbol: float(energy) for symbol, energy in given.items()}


def _scan(name: str, entry: Mapping[str, str], sets: dict[str, list[Atoms]]) -> Scan:
    """Sorts its set along the coordinate."""
    known = [key for key in sets if key not in ("train", "valid")]
    if name not in known:
        raise unknown_names("evaluation set of scans", [str(name)], known)
    for index, atoms in enumerate(sets[name]):
        value = atoms.info.get(entry["x"])
        if not isinstance(value, int | float | np.number):
            raise EFAError(f"scans: {name}: structure {index} must have a number {entry['x']} in its info, got {value!r}.")
    sets[name] = sorted(sets[name], key=lambda atoms: float(atoms.info[entry["x"]]))
    return Scan(entry["x"], entry["label"])
