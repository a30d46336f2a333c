"""Where the data of studies come from: closed formulas, or GFN2-xTB (tblite). One module per source.

A source fills a folder: train.xyz, valid.xyz (both for training, the split made here, once for all hosts), and any number of
further files, each of which every model is evaluated on; test.xyz is one of them. All are extended XYZ with REF_energy (eV) and
REF_forces (eV/Å), not periodic. A file of structures along a coordinate becomes a curve in the report: see `Scan`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efa_addons.studies import cumulene

if TYPE_CHECKING:
    from ase import Atoms

SPEC, SCANS = "data.json", "scans.json"


@dataclass(frozen=True)
class Scan:
    """How the structures of a file lie along a coordinate.

    Args:
        x: the key in their info that holds the coordinate.
        label: of the x-axis, with its unit.
        align: what of predicted curves is shifted onto the reference: "mean", "last" (the last point), or "none".
        analysis: "barrier" (first minus last), "power_law" (exponent of |E - E(far)| over `tail`), or "none".
        tail: range of the coordinate for the power law; energies are taken relative to `align`.
    """

    x: str
    label: str
    align: str = "mean"
    analysis: str = "none"
    tail: tuple[float, float] | None = None


@dataclass(frozen=True)
class Data:
    """What a source makes: structures for each file, by its name without .xyz, labelled; and which of them are scans."""

    sets: Mapping[str, Sequence[Atoms]]
    scans: Mapping[str, Scan] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A source: `make(seed=…, **options) -> Data`, and options for a set of a handful of structures."""

    make: Callable[..., Data]
    tiny: Mapping[str, Any]

    @property
    def options(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.make).parameters)


SOURCES: dict[str, Source] = {}


def write(folder: Path | str, source: str, options: Mapping[str, Any]) -> Path:
    """Fills `folder` with a source's data, unless they are there already; returns it. Others' data are replaced."""
    folder = Path(folder)
    spec = {"source": source, "options": dict(options)}
    stamp = folder / SPEC
    if stamp.exists() and json.loads(stamp.read_text()) == json.loads(json.dumps(spec)):
        return folder
    ase_write = cumulene.require("ase.io", "data").write
    data = SOURCES[source].make(**options)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.xyz"):
        path.unlink()
    for name, structures in data.sets.items():
        ase_write(folder / f"{name}.xyz", list(structures), format="extxyz")
    (folder / SCANS).write_text(json.dumps({name: asdict(scan) for name, scan in data.scans.items()}, indent=2) + "\n")
    stamp.write_text(json.dumps(spec, indent=2) + "\n")
    return folder


def scans(folder: Path) -> dict[str, Scan]:
    """The scans of a folder of data."""
    return {name: Scan(**entry) for name, entry in json.loads((folder / SCANS).read_text()).items()}


def evaluation_sets(folder: Path) -> list[str]:
    """The files that models are evaluated on, test first."""
    names = sorted(path.stem for path in folder.glob("*.xyz") if path.stem not in ("train", "valid"))
    return sorted(names, key=lambda name: name != "test")
