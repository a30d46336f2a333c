"""What the contenders of `benchmarks.efa` are given: the same structures, features and weights, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from efa_addons.ops.lebedev import max_phase_for

SPACING = 1.6  # Å, about the density of a molecule
TOLERANCE = 1e-5  # of the quadrature at max_length
TASKS = ("forward", "forces", "training")


@dataclass(frozen=True)
class Problem:
    """Attention on `num_graphs` droplets of `num_atoms` atoms.

    Args:
        width_qk, width_v: features of q and k, and of v (and of the input); D = width (degree + 1)².
        degree: of input, q, k and v.
        points: of the one grid of the reference. The largest phase is the one that this grid integrates to `TOLERANCE`.
    """

    num_graphs: int
    num_atoms: int
    width_qk: int = 32
    width_v: int = 64
    degree: int = 0
    points: int = 50

    @property
    def atoms(self) -> int:
        return self.num_graphs * self.num_atoms

    @property
    def dims(self) -> tuple[int, int]:
        """D_qk and D_v."""
        return self.width_qk * (self.degree + 1) ** 2, self.width_v * (self.degree + 1) ** 2

    @property
    def max_frequency(self) -> float:
        return max_phase_for(self.points, TOLERANCE)

    def __str__(self) -> str:
        return f"{self.num_graphs} x {self.num_atoms}"

    def contains(self, other: Problem) -> bool:
        """No smaller than the other in any respect, and of its kind (a batch, or one structure)."""
        mine, its = ((p.atoms, p.points, *p.dims) for p in (self, other))
        return (self.num_graphs > 1) == (other.num_graphs > 1) and all(a >= b for a, b in zip(mine, its, strict=True))


@dataclass(frozen=True)
class Arrays:
    """Float32: inputs (N, 1, K, F_v), positions (N, 3) in Å, batch (N,), cotangent like the output, weights below.

    weights: of q, k and v in turn a kernel (degree + 1, F_in, F_out) and a bias (F_out,). max_length in Å.
    """

    inputs: np.ndarray
    positions: np.ndarray
    batch: np.ndarray
    cotangent: np.ndarray
    weights: list[np.ndarray]
    max_length: float


def arrays(problem: Problem, seed: int = 0) -> Arrays:
    """The same for every contender."""
    rng = np.random.default_rng(seed)
    num, components = problem.atoms, (problem.degree + 1) ** 2
    direction = rng.normal(size=(num, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = SPACING * (0.75 / np.pi * problem.num_atoms) ** (1 / 3)
    positions = radius * rng.uniform(size=(num, 1)) ** (1 / 3) * direction
    weights = []
    for width in (problem.width_qk, problem.width_qk, problem.width_v):
        weights.append(rng.normal(size=(problem.degree + 1, problem.width_v, width)) * problem.width_v**-0.5)
        weights.append(0.3 * rng.normal(size=width))
    inputs, cotangent = rng.normal(size=(2, num, 1, components, problem.width_v))
    single = [a.astype(np.float32) for a in (inputs, positions, cotangent, *weights)]
    batch = np.repeat(np.arange(problem.num_graphs), problem.num_atoms)
    return Arrays(single[0], single[1], batch, single[2], single[3:], 2 * radius)
