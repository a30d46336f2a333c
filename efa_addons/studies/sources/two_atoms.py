"""Two atoms, E = 12/11 (r^-12 - r^-1): the simplest question whether a model sees past its cutoff. Arbitrary units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efa_addons.errors import EFAError
from efa_addons.studies.common import labelled, require
from efa_addons.studies.sources.base import Data, Scan, draw
from efa_addons.studies.sources.pairs import pair_sum

if TYPE_CHECKING:
    from ase import Atoms

NUMBERS = (1, 2)
DISTANCE = "distance"


def potential(r: np.ndarray, *atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E and dE/dr, (num_pairs,); the zero is at r = 1."""
    return 12 / 11 * (r**-12 - 1 / r), 12 / 11 * (r**-2 - 12 * r**-13)


def make(
    seed: int = 0,
    num_train: int = 200,
    num_valid: int = 40,
    num_test: int = 100,
    r_min: float = 1.0,
    r_max: float = 10.0,
    num_scan: int = 46,
) -> Data:
    """Distances uniform in [r_min, r_max], in random directions; `scan` runs over them, its tail over the farther half."""
    ase = require("ase", "data")
    if not 0 < r_min < r_max:
        raise EFAError(f"two_atoms: r_min must be positive and below r_max, got r_min={r_min} and r_max={r_max}.")

    def pair(r: float, direction: np.ndarray) -> Atoms:
        positions = np.array([np.zeros(3), r * direction])
        return labelled(ase.Atoms(NUMBERS, positions, info={DISTANCE: float(r)}), *pair_sum(positions, potential))

    def sample(rng: np.random.Generator) -> Atoms:
        direction = rng.normal(size=3)
        return pair(rng.uniform(r_min, r_max), direction / np.linalg.norm(direction))

    sets = draw(sample, seed, train=num_train, valid=num_valid, test=num_test)
    sets["scan"] = [pair(r, np.array([0.0, 0.0, 1.0])) for r in np.linspace(r_min, r_max, num_scan)]
    tail = ((r_min + r_max) / 2, r_max)
    return Data(sets, {"scan": Scan(DISTANCE, "distance", align="none", analysis="power_law", tail=tail)})
