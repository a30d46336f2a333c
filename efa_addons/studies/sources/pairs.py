"""Sums over pairs, and atoms in a ball: what the clusters of closed formulas share. Lengths Å."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from efa_addons.errors import EFAError

WALL = 20.0  # eV/Å²
TRIES = 100_000  # for the place of one atom

# distances (num_pairs,) and the two atoms of each pair -> energies (eV) and their derivatives by distance, (num_pairs,)
Potential = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def pair_sum(positions: np.ndarray, potential: Potential) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces (num_atoms, 3) of the sum of `potential` over all pairs of atoms."""
    first, second = np.triu_indices(len(positions), 1)
    between = positions[first] - positions[second]
    r = np.linalg.norm(between, axis=1)
    energies, slopes = potential(r, first, second)
    pulls = (slopes / r)[:, None] * between
    forces = np.zeros_like(positions)
    np.subtract.at(forces, first, pulls)
    np.add.at(forces, second, pulls)
    return float(energies.sum()), forces


def in_ball(rng: np.random.Generator, num: int, radius: float, min_distance: float) -> np.ndarray:
    """Positions (num, 3), uniform in a ball, none nearer to an earlier one than `min_distance`; EFAError: they do not fit."""
    positions, tries = np.empty((0, 3)), 0
    while len(positions) < num:
        tries += 1
        if tries > TRIES:
            raise EFAError(
                f"{num} atoms {min_distance} apart and more do not fit into a ball of radius {radius}: "
                f"there is no place for number {len(positions) + 1}. Take fewer atoms, or a larger radius."
            )
        candidate = rng.uniform(-radius, radius, 3)
        near = np.linalg.norm(positions - candidate, axis=1) < min_distance
        if np.linalg.norm(candidate) <= radius and not near.any():
            positions, tries = np.vstack([positions, candidate]), 0
    return positions


def settled(positions: np.ndarray, potential: Potential, num_steps: int, radius: float = np.inf) -> np.ndarray:
    """After so many steps (of L-BFGS) towards lower energy, with a soft wall at `radius`: few leave clusters loose."""
    from scipy.optimize import minimize

    def energy_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        points = flat.reshape(-1, 3)
        energy, forces = pair_sum(points, potential)
        length = np.linalg.norm(points, axis=1, keepdims=True)
        outside = np.maximum(length - radius, 0.0)
        return energy + WALL / 2 * (outside**2).sum(), (WALL * outside * points / length - forces).ravel()

    result = minimize(energy_and_gradient, positions.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": num_steps})
    return result.x.reshape(-1, 3)
