"""A charge and a polar molecule of two atoms, E = strength p·R/R^3: far away, only the direction p of a bond counts.

Attended scalars see how far the charge is from each atom, and no molecule can hide p from them altogether: atoms that lie apart
along p come nearer or farther as it turns. But where the bond is short they nearly cannot: of scalars, p·R is the difference of
two terms R/bond times larger than itself. A vector of the bond's atoms has p at once, and the direction of R makes p·R of it.

Arbitrary units.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efa_addons.studies.common import labelled, require
from efa_addons.studies.sources.base import Data, Scan, draw

if TYPE_CHECKING:
    from ase import Atoms

NUMBERS = (3, 1, 9)  # the charge, and the two atoms of the molecule; p points from the first to the second of these
STIFFNESS = 10.0  # of the bond
VARIATION = 0.1  # of its length, relative
DISTANCE, ANGLE = "distance", "angle"
ROTATED_AT = 8.0


def make(
    seed: int = 0,
    num_train: int = 200,
    num_valid: int = 40,
    num_test: int = 100,
    nearest: float = 4.0,
    farthest: float = 12.0,
    bond: float = 0.2,
    strength: float = 10.0,
    num_scan: int = 25,
) -> Data:
    """Charges at distances uniform in a range, p in any direction, and bonds a little longer or shorter than `bond`.

    `rotation` turns p away from the charge, 0 to 180 degrees, at a distance of 8; `distance` pulls them apart, p towards it.
    """
    ase = require("ase", "data")

    def structure(charge: np.ndarray, p: np.ndarray, length: float = bond, info: dict[str, float] | None = None) -> Atoms:
        positions = np.array([charge, -length / 2 * p, length / 2 * p])
        return labelled(ase.Atoms(NUMBERS, positions, info=info), *energy_and_forces(positions, bond, strength))

    def sample(rng: np.random.Generator) -> Atoms:
        towards, p = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
        return structure(rng.uniform(nearest, farthest) * towards, p, bond * (1 + VARIATION * rng.uniform(-1, 1)))

    sets = draw(sample, seed, train=num_train, valid=num_valid, test=num_test)
    z = np.array([0.0, 0.0, 1.0])
    sets["rotation"] = [
        structure(ROTATED_AT * z, np.array([np.sin(angle), 0, np.cos(angle)]), info={ANGLE: float(np.degrees(angle))})
        for angle in np.linspace(0, np.pi, num_scan)
    ]
    sets["distance"] = [structure(r * z, z, info={DISTANCE: float(r)}) for r in np.linspace(nearest, farthest, num_scan)]
    tail = ((nearest + farthest) / 2, farthest)
    scans = {
        "rotation": Scan(ANGLE, "angle between dipole and charge (degrees)", align="none"),
        "distance": Scan(DISTANCE, "distance", align="none", analysis="power_law", tail=tail),
    }
    return Data(sets, scans)


def energy_and_forces(positions: np.ndarray, bond: float, strength: float) -> tuple[float, np.ndarray]:
    """Of charge and molecule, positions (3, 3): strength p·R/R^3, R from the middle of the bond, and a spring."""
    charge, tail, head = positions
    between, along = charge - (tail + head) / 2, head - tail
    distance, length = np.linalg.norm(between), np.linalg.norm(along)
    p, field = along / length, strength * between / distance**3
    energy = p @ field + STIFFNESS / 2 * (length - bond) ** 2
    by_between = strength * p / distance**3 - 3 * (p @ field) * between / distance**2
    by_along = (field - (p @ field) * p) / length + STIFFNESS * (length - bond) * p
    return float(energy), np.array([-by_between, by_between / 2 + by_along, by_between / 2 - by_along])
