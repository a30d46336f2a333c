"""Cumulenes C_nH4 labelled with GFN2-xTB: data for the question whether a force field sees the twist of two far CH2 groups.

The ends of C9H4 are 10 Å apart, three times the usual cutoff of a local model, and yet their twist is worth 0.85 eV. Angles are
in radians, lengths in Å, energies in eV, forces in eV/Å.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import Progress

from efa_addons.studies.common import ENERGY, FORCES, METHOD, label, random_rotation, relaxed, require, track

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["ENERGY", "FORCES"]

TWIST = "twist"
DISPLACEMENT = 0.03
FILES = ("train.xyz", "test.xyz", "scan.xyz")


@dataclass(frozen=True)
class Shape:
    """The internal coordinates of a cumulene other than its twist; the two halves of the molecule are alike.

    Args:
        bonds: C-C lengths (Å) from an end to the middle, ceil((n - 1) / 2) of them for n carbons.
        ch: C-H length, Å.
        hcc: H-C-C angle, radians.
    """

    bonds: tuple[float, ...]
    ch: float = 1.08
    hcc: float = math.radians(121.5)

    @classmethod
    def guess(cls, num_carbons: int = 9) -> Shape:
        """A start for `relax`: all C-C bonds 1.28 Å."""
        return cls(bonds=(1.28,) * (num_carbons // 2))

    @classmethod
    def from_vector(cls, vector: np.ndarray | list[float]) -> Shape:
        """Inverse of `vector`."""
        *bonds, ch, hcc = (float(value) for value in vector)
        return cls(tuple(bonds), ch, hcc)

    @property
    def vector(self) -> np.ndarray:
        """bonds, ch, hcc as one array (num_bonds + 2,)."""
        return np.array([*self.bonds, self.ch, self.hcc])


def cumulene(twist: float, shape: Shape | None = None, num_carbons: int = 9) -> Atoms:
    """C_nH4 along z, its two CH2 planes at an angle `twist` (radians); carbons first, then two H of the lower and upper end."""
    ase = require("ase", "data")
    shape = shape or Shape.guess(num_carbons)
    if len(shape.bonds) != num_carbons // 2:
        raise ValueError(f"{num_carbons} carbons need {num_carbons // 2} unique bond lengths, got {len(shape.bonds)}.")
    return ase.Atoms(f"C{num_carbons}H4", _positions(twist, shape, num_carbons), info={TWIST: float(twist)})


def relax(twist: float, shape: Shape, num_carbons: int = 9) -> Shape:
    """The shape of lowest energy at fixed twist."""

    def build(vector: np.ndarray) -> Atoms:
        return cumulene(twist, Shape.from_vector(vector), num_carbons)

    return Shape.from_vector(relaxed(build, shape.vector, f"twist {math.degrees(twist):.1f}°"))


def relaxed_scan(
    num_twists: int = 13, num_carbons: int = 9, progress: Progress | None = None
) -> tuple[list[Atoms], list[Shape]]:
    """Labelled structures and shapes relaxed at `num_twists` twists from 0 to 90 degrees."""
    shape, structures, shapes = Shape.guess(num_carbons), [], []
    for twist in track(np.linspace(0, math.pi / 2, num_twists), "relaxed torsion scan", progress):
        shape = relax(twist, shape, num_carbons)
        shapes.append(shape)
        structures.append(label(cumulene(twist, shape, num_carbons)))
    return structures, shapes


def sample(
    shapes: list[Shape], num: int, seed: int | np.random.SeedSequence | np.random.Generator, num_carbons: int = 9
) -> list[Atoms]:
    """Unlabelled structures: twist uniform in [0, π], shape as relaxed there, Gaussian displacements, random orientation.

    `shapes` are those of a scan from 0 to 90 degrees; E(twist) = E(π - twist) serves the rest.
    """
    rng = np.random.default_rng(seed)
    scanned = np.linspace(0, math.pi / 2, len(shapes))
    columns = np.array([shape.vector for shape in shapes]).T
    structures = []
    for _ in range(num):
        twist = rng.uniform(0, math.pi)
        folded = min(twist, math.pi - twist)
        atoms = cumulene(twist, Shape.from_vector([np.interp(folded, scanned, column) for column in columns]), num_carbons)
        moved = atoms.positions + rng.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
        atoms.positions = moved @ random_rotation(rng).T
        structures.append(atoms)
    return structures


@dataclass(frozen=True)
class DataSpec:
    """What decides the data of `make`; kept beside the files as data.json."""

    seed: int = 0
    num_train: int = 300
    num_test: int = 60
    num_twists: int = 13
    num_carbons: int = 9
    displacement: float = DISPLACEMENT
    method: str = METHOD


def make(folder: Path | str, seed: int = 0, num_train: int = 300, num_test: int = 60, num_twists: int = 13) -> Path:
    """Writes train.xyz, test.xyz and scan.xyz (extended XYZ, keys REF_energy and REF_forces) unless they are there already.

    Files made with other settings are replaced.
    """
    spec, folder = DataSpec(seed, num_train, num_test, num_twists), Path(folder)
    stamp, text = folder / "data.json", json.dumps(asdict(spec), indent=2) + "\n"
    if stamp.exists() and stamp.read_text() == text and all((folder / name).exists() for name in FILES):
        return folder
    write = require("ase.io", "data").write
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as progress:
        scan, shapes = relaxed_scan(num_twists, progress=progress)
        # separate streams: the test set stays the same when the training set grows
        seeds = np.random.SeedSequence(seed).spawn(2)
        train, test = (
            [label(atoms) for atoms in track(sample(shapes, num, stream), f"{METHOD}, {name} set", progress)]
            for name, num, stream in zip(("training", "test"), (num_train, num_test), seeds, strict=True)
        )
    stamp.unlink(missing_ok=True)  # what is interrupted here has none
    for name, structures in zip(FILES, (train, test, scan), strict=True):
        write(folder / name, structures, format="extxyz")
    stamp.write_text(text)
    return folder


def read(folder: Path | str, name: str) -> list[Atoms]:
    """The structures of `folder`/`name`.xyz, for example `read(folder, "scan")`."""
    return require("ase.io", "data").read(Path(folder) / f"{name}.xyz", index=":")


def twist_of(atoms: Atoms) -> float:
    """Angle (radians, in [0, π/2]) between the two H-H axes, seen along the chain; `atoms` ordered as by `cumulene`."""
    carbons = atoms.positions[atoms.numbers == 6]
    hydrogens = atoms.positions[atoms.numbers == 1]
    axis = (carbons[-1] - carbons[0]) / np.linalg.norm(carbons[-1] - carbons[0])
    across = hydrogens[::2] - hydrogens[1::2]
    across = across - (across @ axis)[:, None] * axis
    low, high = across / np.linalg.norm(across, axis=1, keepdims=True)
    return math.atan2(np.linalg.norm(np.cross(low, high)), abs(low @ high))


def _positions(twist: float, shape: Shape, num_carbons: int) -> np.ndarray:
    """(num_carbons + 4, 3) Å."""
    gaps = [shape.bonds[min(i, num_carbons - 2 - i)] for i in range(num_carbons - 1)]
    z = np.concatenate([[0.0], np.cumsum(gaps)])
    z -= z.mean()
    positions = [(0.0, 0.0, height) for height in z]
    across, along = shape.ch * math.sin(shape.hcc), -shape.ch * math.cos(shape.hcc)
    for side, end in ((-1, z[0]), (1, z[-1])):
        x, y = across * math.cos(side * twist / 2), across * math.sin(side * twist / 2)
        positions += [(x, y, end + side * along), (-x, -y, end + side * along)]
    return np.array(positions)
