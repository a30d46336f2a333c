"""Where the data of studies come from: closed formulas, GFN2-xTB (tblite), or files. One module per source.

A source fills a folder: train.xyz, valid.xyz (both for training, the split made here, once for all hosts), and any number of
further files, each of which every model is evaluated on; test.xyz is one of them. All are extended XYZ with REF_energy (eV) and
REF_forces (eV/Å), not periodic. A file of structures along a coordinate becomes a curve in the report: see `Scan`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efa_addons.errors import EFAError
from efa_addons.studies import cumulene
from efa_addons.studies.common import require
from efa_addons.studies.runs import digest
from efa_addons.studies.sources import charge_dipole, clusters, cumulenes, dimers, files, nacl, sn2, two_atoms
from efa_addons.studies.sources.base import Data, Scan, Source

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["Data"]

SPEC, SCANS = "data.json", "scans.json"

SOURCES: dict[str, Source] = {
    "two_atoms": Source(two_atoms.make, {"num_train": 6, "num_valid": 2, "num_test": 2, "num_scan": 5}),
    "clusters": Source(clusters.make, {"num_train": 6, "num_valid": 2, "num_test": 2, "num_atoms": 8}),
    "charge_dipole": Source(charge_dipole.make, {"num_train": 6, "num_valid": 2, "num_test": 2, "num_scan": 5}),
    "nacl": Source(
        nacl.make,
        {"sizes": [9, 16], "diameters": [6.0, 8.0], "num_train": [4, 2], "num_valid": [2, 0], "num_test": [2, 2]},
    ),
    "cumulenes": Source(cumulenes.make, {"num_carbons": [5], "num_train": 6, "num_valid": 2, "num_test": 2, "num_twists": 2}),
    "sn2": Source(sn2.make, {"num_train": 6, "num_valid": 2, "num_test": 2, "num_scan": 5, "farthest": 2.0}),
    "dimers": Source(dimers.make, {"dimers": ["cl_hf"], "num_train": 6, "num_valid": 2, "num_test": 2, "num_scan": 5}),
    "files": Source(files.make, {"limit": 10}, files=("train", "valid", "test")),
}


def write(folder: Path | str, source: str, options: Mapping[str, Any]) -> Path:
    """Fills `folder` with a source's data, unless they are there already; returns it. Others' data are replaced."""
    folder = Path(folder)
    spec: dict[str, Any] = {"source": source, "options": {**SOURCES[source].options, **options}}
    if paths := SOURCES[source].paths(options):
        spec["sha256"] = {path: digest(Path(path).read_bytes()) for path in paths}  # a file may change under its name
    text = json.dumps(spec, indent=2) + "\n"
    stamp = folder / SPEC
    if stamp.exists() and stamp.read_text() == text:
        return folder
    ase_write = require("ase.io", "data").write
    try:
        data = SOURCES[source].make(**options)
    except EFAError:
        raise
    except (ValueError, TypeError, LookupError) as error:  # of numbers that make no structure, where they are not looked at
        raise EFAError(
            f"data: {folder.name}: {source} makes no structures of {dict(options)} ({type(error).__name__}: {error})."
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)  # what is interrupted here has none
    for path in folder.glob("*.xyz"):
        path.unlink()
    for name, structures in data.sets.items():
        if len(structures):
            ase_write(folder / f"{name}.xyz", list(structures), format="extxyz")
        elif name in ("train", "valid"):
            raise EFAError(f"the data of {source} have no structure in {name}: ask for one or more ({dict(options)}).")
    (folder / SCANS).write_text(json.dumps({name: asdict(scan) for name, scan in data.scans.items()}, indent=2) + "\n")
    others = {kind: structures for kind, structures in data.sets.items() if kind != "train"}
    say_known(folder.name, data.sets["train"], others, "the training set")
    stamp.write_text(text)
    return folder


def say_known(name: str, train: Sequence[Atoms], sets: Mapping[str, Sequence[Atoms]], where: str) -> None:
    """One line on structures that are trained on and evaluated: the same atoms in the same order, positions to 1e-3 Å."""

    def keys(structures: Sequence[Atoms]) -> list[tuple[bytes, bytes]]:
        return [(atoms.numbers.tobytes(), (atoms.positions.round(3) + 0.0).tobytes()) for atoms in structures]  # -0.0 is 0.0

    seen = {*keys(train)}
    known = {kind: sum(key in seen for key in keys(structures)) for kind, structures in sets.items()}
    if said := ", ".join(f"{num} of {len(sets[kind])} in {kind}" for kind, num in known.items() if num):
        print(f"warning: {name}: structures that are in {where}, too: {said}; errors there are too small")


def scans(folder: Path) -> dict[str, Scan]:
    """The scans of a folder of data."""
    return {name: Scan(**entry) for name, entry in json.loads((folder / SCANS).read_text()).items()}


def read(folder: Path) -> dict[str, list[Atoms]]:
    """All sets of a folder of data: train, valid, and those that models are evaluated on."""
    return {name: cumulene.read(folder, name) for name in ("train", "valid", *evaluation_sets(folder))}


def evaluation_sets(folder: Path) -> list[str]:
    """The files that models are evaluated on, test first."""
    names = sorted(path.stem for path in folder.glob("*.xyz") if path.stem not in ("train", "valid"))
    return sorted(names, key=lambda name: name != "test")
