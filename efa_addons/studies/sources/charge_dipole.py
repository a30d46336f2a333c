"""A charge and a small polar molecule, E = strength p·R/R^3: a far atom must know the direction p. Arbitrary units.

Attended scalars see how far the charge is from each atom. No molecule hides p from them altogether: atoms that lie apart along
p come nearer or farther as p turns. But a flat one nearly does: here p is the normal of a ring of three atoms, on the side of a
fourth that is `height` above it. Of scalars, p·R is a sum of terms that are R/height times larger; a vector has it at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efa_addons.studies.common import labelled, random_rotation, require
from efa_addons.studies.sources.base import Data, Scan, draw

if TYPE_CHECKING:
    from ase import Atoms

NUMBERS = (3, 7, 1, 1, 1)  # the charge, the atom above the ring, the ring
RING = 1.0  # radius
STIFFNESS = 10.0  # of the molecule's six distances
DISPLACEMENT = 0.02
DISTANCE, ANGLE = "distance", "angle"
ROTATED_AT = 8.0


def make(
    seed: int = 0,
    num_train: int = 200,
    num_valid: int = 40,
    num_test: int = 100,
    nearest: float = 4.0,
    farthest: float = 12.0,
    height: float = 0.15,
    strength: float = 10.0,
    num_scan: int = 25,
) -> Data:
    """Charges at distances uniform in a range, in any direction of a molecule that is slightly deformed.

    `rotation` turns p away from the charge, 0 to 180 degrees, at a distance of 8; `distance` pulls them apart, p towards it.
    """
    ase = require("ase", "data")

    def structure(charge: np.ndarray, positions: np.ndarray, info: dict[str, float] | None = None) -> Atoms:
        both = np.vstack([charge, positions])
        return labelled(ase.Atoms(NUMBERS, both, info=info), *energy_and_forces(both, height, strength))

    def sample(rng: np.random.Generator) -> Atoms:
        direction = rng.normal(size=3)
        charge = rng.uniform(nearest, farthest) * direction / np.linalg.norm(direction)
        turned = (molecule(height) + rng.normal(scale=DISPLACEMENT, size=(4, 3))) @ random_rotation(rng).T
        return structure(charge, turned)

    sets = draw(sample, seed, train=num_train, valid=num_valid, test=num_test)
    sets["rotation"] = [
        structure(ROTATED_AT * np.array([np.sin(angle), 0, np.cos(angle)]), molecule(height), {ANGLE: float(np.degrees(angle))})
        for angle in np.linspace(0, np.pi, num_scan)
    ]
    sets["distance"] = [
        structure(np.array([0, 0, r]), molecule(height), {DISTANCE: float(r)}) for r in np.linspace(nearest, farthest, num_scan)
    ]
    tail = ((nearest + farthest) / 2, farthest)
    scans = {
        "rotation": Scan(ANGLE, "angle between dipole and charge (degrees)", align="none"),
        "distance": Scan(DISTANCE, "distance", align="none", analysis="power_law", tail=tail),
    }
    return Data(sets, scans)


def molecule(height: float) -> np.ndarray:
    """Positions (4, 3): the atom above the ring, and the ring around the origin; p along z."""
    turns = 2 * np.pi * np.arange(3) / 3
    ring = RING * np.stack([np.cos(turns), np.sin(turns), np.zeros(3)], axis=1)
    return np.vstack([[0, 0, height], ring])


def energy_and_forces(positions: np.ndarray, height: float, strength: float) -> tuple[float, np.ndarray]:
    """Of the five atoms, (5, 3)."""
    bonds, forces = _bonds(positions[1:], molecule(height))
    charge, above, a, b, c = positions
    between = charge - (a + b + c) / 3
    length = np.linalg.norm(between)
    field = strength * between / length**3  # what p is multiplied with
    first, second = b - a, c - a
    normal = np.cross(first, second)
    size = np.linalg.norm(normal)
    side = np.sign(normal @ (above - a))
    p = side * normal / size
    # derivatives: by `between` at fixed p, and by the two edges of the ring through p
    by_between = strength * (p - 3 * (p @ between) * between / length**2) / length**3
    by_normal = side * (field - (p @ field) * p) / size
    by_first, by_second = np.cross(second, by_normal), np.cross(by_normal, first)
    forces = np.vstack([-by_between, forces])
    forces[2:] += by_between / 3
    forces[2] += by_first + by_second
    forces[3] -= by_first
    forces[4] -= by_second
    return bonds + float(p @ field), forces


def _bonds(positions: np.ndarray, relaxed: np.ndarray) -> tuple[float, np.ndarray]:
    """Springs between all four atoms: energy and forces (4, 3)."""
    first, second = np.triu_indices(4, 1)
    between = positions[first] - positions[second]
    r = np.linalg.norm(between, axis=1)
    stretch = r - np.linalg.norm(relaxed[first] - relaxed[second], axis=1)
    forces = np.zeros_like(positions)
    np.subtract.at(forces, first, (STIFFNESS * stretch / r)[:, None] * between)
    np.add.at(forces, second, (STIFFNESS * stretch / r)[:, None] * between)
    return float(STIFFNESS / 2 * (stretch**2).sum()), forces
