"""X- + CH3Y -> XCH3 + Y-, labelled with GFN2-xTB: an ion leaves, and is felt far beyond any cutoff. Total charge -1.

The reaction coordinate is the difference of distances d(C-Y) - d(C-X), Å: at first X is far, and it is negative.

GFN2-xTB keeps the electron on a far ion only where that holds it better than the molecule would. Cl- does beside CH3Cl, out to
10 Å and beyond. Beside CH3Br or CH3I a fraction leaves it from 10 Å on, as F- loses it to CH3Cl or CH3I at half of that: their
asymptotes are wrong, or nothing converges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from efa_addons.studies.common import ENERGY, bars, label, random_rotation, relaxed, require
from efa_addons.studies.sources.base import Data, Scan, draw

if TYPE_CHECKING:
    from ase import Atoms

COORDINATE = "reaction_coordinate"
CHARGE = -1
STEP = 0.5  # Å, the longest that a relaxed shape is a good start for
START = (
    4.6,
    0.0,
    1.08,
)  # Å, of the relaxation at zero: the sum of C-X and C-Y, the hydrogens' height and distance from the axis


def make(
    seed: int = 0,
    entering: str = "Cl",
    leaving: str = "Cl",
    num_train: int = 200,
    num_valid: int = 30,
    num_test: int = 60,
    num_scan: int = 41,
    farthest: float = 10.0,
    displacement: float = 0.04,
) -> Data:
    """Structures relaxed at coordinates uniform in ±`farthest`, with Gaussian displacements, Å; `scan` is the relaxed path.

    Energies are above those of ion and molecule apart, the molecule as at the beginning of the path.
    """
    symbols = ("C", entering, leaving, "H", "H", "H")
    coordinates = np.linspace(-farthest, farthest, num_scan)
    shapes = path(symbols, coordinates)
    first = build(symbols, coordinates[0], shapes[0])
    zero = sum(label(first[part], charge).info[ENERGY] for part, charge in (([1], CHARGE), ([0, 2, 3, 4, 5], 0)))

    def sample(rng: np.random.Generator) -> Atoms:
        coordinate = rng.uniform(-farthest, farthest)
        atoms = build(symbols, coordinate, [np.interp(coordinate, coordinates, column) for column in shapes.T])
        atoms.positions += rng.normal(scale=displacement, size=atoms.positions.shape)
        atoms.positions = atoms.positions @ random_rotation(rng).T
        return label(atoms, CHARGE, zero)

    sets = draw(sample, seed, train=num_train, valid=num_valid, test=num_test)
    sets["scan"] = [label(build(symbols, *point), CHARGE, zero) for point in zip(coordinates, shapes, strict=True)]
    return Data(sets, {"scan": Scan(COORDINATE, "d(C-Y) - d(C-X) (Å)")})


def build(symbols: Sequence[str], coordinate: float, shape: Sequence[float] | np.ndarray) -> Atoms:
    """C, X, Y and three H of threefold symmetry, with X on one side of C and Y on the other.

    `shape`: d(C-X) + d(C-Y), height of the hydrogens above C towards Y, and their distance from the axis, Å.
    """
    total, height, spread = shape
    turns = 2 * np.pi * np.arange(3) / 3
    hydrogens = np.stack([spread * np.cos(turns), spread * np.sin(turns), np.full(3, height)], axis=1)
    axis = np.zeros((3, 3))
    axis[1:, 2] = (coordinate - total) / 2, (coordinate + total) / 2
    return require("ase", "data").Atoms(symbols, np.vstack([axis, hydrogens]), info={COORDINATE: float(coordinate)})


def path(symbols: Sequence[str], coordinates: np.ndarray) -> np.ndarray:
    """Shapes relaxed at each coordinate, (num_points, 3); from the middle outwards, each from the one before."""
    shapes = np.empty((len(coordinates), 3))
    with bars() as progress:
        task = progress.add_task("relaxed path", total=len(coordinates))
        for side in (coordinates >= 0, coordinates < 0):
            shape, before = np.array(START), 0.0
            for index in sorted(np.flatnonzero(side), key=lambda index: abs(coordinates[index])):
                num_steps = max(1, math.ceil(abs(coordinates[index] - before) / STEP))
                for coordinate in np.linspace(before, coordinates[index], num_steps + 1)[1:]:
                    shape = shape + [abs(coordinate - before), 0, 0]
                    shape = relaxed(partial(build, symbols, coordinate), shape, f"coordinate {coordinate:.1f} Å", CHARGE)
                    before = coordinate
                shapes[index] = shape
                progress.advance(task)
    return shapes
