"""Clusters of equal atoms in a ball, E = sum over pairs of 2 (r^-6 - r^-1). Arbitrary units.

Atoms placed at random come together for some steps under a short-ranged potential, and are displaced: droplets and single atoms
throughout the ball. How far apart they are, the long-ranged r^-1 feels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from efa_addons.errors import EFAError
from efa_addons.studies.common import labelled, require
from efa_addons.studies.sources.base import Data, draw
from efa_addons.studies.sources.pairs import in_ball, pair_sum, settled

if TYPE_CHECKING:
    from ase import Atoms

MIN_DISTANCE = 1.0  # at first
BOND, REACH = 1.6, 2.5  # minimum and end of the potential that draws atoms together
STEPS = (20, 100)
DISPLACEMENT = 0.04
CLOSEST = 1.2  # after displacement
TRIES = 1000  # for a structure


def potential(r: np.ndarray, *atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E and dE/dr, (num_pairs,)."""
    return 2 * (r**-6 - 1 / r), 2 * (r**-2 - 6 * r**-7)


def make(
    seed: int = 0,
    num_train: int = 200,
    num_valid: int = 40,
    num_test: int = 100,
    num_atoms: int = 32,
    radius: float = 5.0,
) -> Data:
    """`num_atoms` hydrogens in a ball of `radius`; no scan."""
    ase = require("ase", "data")

    def sample(rng: np.random.Generator) -> Atoms:
        positions = place(rng, num_atoms, radius)
        return labelled(ase.Atoms("H" * num_atoms, positions), *pair_sum(positions, potential))

    return Data(draw(sample, seed, train=num_train, valid=num_valid, test=num_test))


def place(rng: np.random.Generator, num_atoms: int, radius: float) -> np.ndarray:
    """Positions (num_atoms, 3), all within a diameter of each other; EFAError: they do not stay so."""
    for _ in range(TRIES):
        positions = settled(in_ball(rng, num_atoms, radius, MIN_DISTANCE), attraction, int(rng.integers(*STEPS)))
        positions += rng.normal(scale=DISPLACEMENT, size=positions.shape)
        first, second = np.triu_indices(num_atoms, 1)
        distances = np.linalg.norm(positions[first] - positions[second], axis=1)
        if distances.min() > CLOSEST and distances.max() < 2 * radius:
            return positions
    raise EFAError(
        f"{num_atoms} atoms in a ball of radius {radius} came nearer than {CLOSEST} or left it, in each of {TRIES} tries. "
        "Take fewer atoms, or a larger radius."
    )


def attraction(r: np.ndarray, *atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lennard-Jones of depth 1 at BOND, shifted to zero at REACH, and its derivative."""
    sixth, end = (BOND / r) ** 6, (BOND / REACH) ** 6
    inside = r < REACH
    return inside * (sixth**2 - 2 * sixth - end**2 + 2 * end), inside * 12 / r * (sixth - sixth**2)
