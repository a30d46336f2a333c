"""Clusters of Na+ and Cl- ions: how errors grow with the size of a system whose atoms all act on each other.

E = sum over pairs of k q q' erf(r/2)/r + 30 exp(-r / (0.25 r0)) eV, with k = 14.3996 eV Å, charges of +1 and -1, and r0 the sum
of the ions' radii. Half of the ions are Na+; of an odd number one more is Cl-, and the cluster is charged. Ions placed at
random in a ball come to order for some steps downhill, with a wall around the ball.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from efa_addons.errors import EFAError
from efa_addons.studies.common import labelled, require
from efa_addons.studies.sources.base import Data, draw
from efa_addons.studies.sources.pairs import Potential, in_ball, pair_sum, settled

if TYPE_CHECKING:
    from ase import Atoms

COULOMB = 14.3996  # eV Å
RADII = {11: 0.95, 17: 1.81}  # Å
CHARGES = {11: 1, 17: -1}
MIN_DISTANCE = 1.8  # Å, at first
STEPS = (10, 40)


def potential(numbers: np.ndarray) -> Potential:
    """Of the pairs of these atoms: energies (eV) and derivatives (eV/Å)."""
    charges = np.array([CHARGES[number] for number in numbers])
    radii = np.array([RADII[number] for number in numbers])

    def pairs(r: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from scipy.special import erf

        strength, decay = COULOMB * charges[first] * charges[second], 0.25 * (radii[first] + radii[second])
        damped, repulsion = erf(r / 2) / r, 30 * np.exp(-r / decay)
        slope = np.exp(-(r**2) / 4) / np.sqrt(np.pi) / r - damped / r
        return strength * damped + repulsion, strength * slope - repulsion / decay

    return pairs


def make(
    seed: int = 0,
    sizes: Sequence[int] = (39, 132, 314),
    diameters: Sequence[float] = (10.0, 15.0, 20.0),
    num_train: Sequence[int] = (96, 16, 4),
    num_valid: Sequence[int] = (16, 4, 2),
    num_test: Sequence[int] = (40, 20, 8),
) -> Data:
    """Clusters of `sizes` atoms in balls of `diameters` (Å), so many of each; `test_SIZE` of each, and `test` of all."""
    given = {"diameters": diameters, "num_train": num_train, "num_valid": num_valid, "num_test": num_test}
    for name, values in given.items():
        if len(values) != len(sizes):
            raise EFAError(f"{name} of nacl must have one entry for each of the sizes {list(sizes)}, got {list(values)}.")
    sets: dict[str, list[Atoms]] = {"train": [], "valid": [], "test": []}
    for size, diameter, *numbers in zip(sizes, diameters, num_train, num_valid, num_test, strict=True):
        sample = partial(_sample, np.repeat([11, 17], [size // 2, size - size // 2]), diameter / 2)
        drawn = draw(sample, seed, **{f"{name}_{size}": num for name, num in zip(sets, numbers, strict=False)})
        sets |= {name: sets[name] + drawn[f"{name}_{size}"] for name in ("train", "valid", "test")}
        sets[f"test_{size}"] = drawn[f"test_{size}"]
    return Data(sets)


def _sample(numbers: np.ndarray, radius: float, rng: np.random.Generator) -> Atoms:
    pairs = potential(numbers)
    positions = settled(in_ball(rng, len(numbers), radius, MIN_DISTANCE), pairs, int(rng.integers(*STEPS)), radius)
    return labelled(require("ase", "data").Atoms(numbers, positions), *pair_sum(positions, pairs))
