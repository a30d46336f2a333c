"""The directions of the quadrature: a Lebedev grid for each group of frequencies, half of its points."""

# Without `from __future__ import annotations`: TorchScript needs the types of Grid, not their names.
from collections.abc import Sequence
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from efa_addons.ops.harmonics import spherical_harmonics
from efa_addons.ops.lebedev import lebedev_grid, lebedev_num_for

Group = Tuple[int, int]  # points of the Lebedev grid (1: any direction), and number of channels


class Grid(NamedTuple):
    """Directions of all groups one after the other, M of them, none with its opposite, and what they are weighted with."""

    directions: Tensor  # (M, 3)
    even: Tensor  # (M, A_even), λ_m c_l Y_lm(u_m) of even l, λ doubled as it stands for two points
    odd: Tensor  # (M, A_odd), of odd l
    order: Tensor  # (A,) where in even, odd one after the other each Y_lm is
    num_directions: List[int]  # of each group
    num_channels: List[int]  # of each group


def frequency_groups(phases: Sequence[float], tolerance: float, max_degree_sph: int) -> List[Group]:
    """Neighbouring channels that the same smallest grid serves.

    Args:
        phases: ω_c max_length of each channel, radians. Where it is zero, one direction is as good as any number.
        tolerance: as in `lebedev_num_for`.
        max_degree_sph: highest degree of Y.
    """
    groups: List[Group] = []
    for phase in phases:
        points = 1 if phase == 0 else lebedev_num_for(phase, tolerance, max_degree_sph)
        if groups and groups[-1][0] == points:
            groups[-1] = (points, groups[-1][1] + 1)
        else:
            groups.append((points, 1))
    return groups


def half_grid(lebedev_num: int) -> Tuple[np.ndarray, np.ndarray]:
    """One of each pair of opposite points, directions (M/2, 3), and twice the weights (M/2,), which still sum to 1."""
    points, weights = lebedev_grid(lebedev_num)
    x, y, z = np.where(np.abs(points) < 1e-9, 0.0, points).T
    upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
    return points[upper], 2 * weights[upper]


def make_grid(groups: Sequence[Group], degree_constants: Sequence[float], dtype: Optional[torch.dtype] = None) -> Grid:
    """The grid.

    Args:
        groups: see `frequency_groups`.
        degree_constants: c_l of each degree of Y, from 0; [1.0] for attention without harmonics.
        dtype: none given: the default one, or single precision where that is a half.
    """
    max_degree = len(degree_constants) - 1
    degrees = [degree for degree in range(max_degree + 1) for _ in range(2 * degree + 1)]
    directions, weighted = [], []
    for lebedev_num, _ in groups:
        points, weights = (np.array([[0.0, 0.0, 1.0]]), np.ones(1)) if lebedev_num == 1 else half_grid(lebedev_num)
        u = torch.as_tensor(points, dtype=torch.float64)
        harmonics = spherical_harmonics(max_degree, u)
        if lebedev_num == 1:  # the integral of Y alone
            harmonics[:, 1:] = 0
        constants = torch.tensor([degree_constants[degree] for degree in degrees], dtype=torch.float64)
        directions.append(u)
        weighted.append(torch.as_tensor(weights)[:, None] * harmonics * constants)
    even = [a for a, degree in enumerate(degrees) if degree % 2 == 0]
    odd = [a for a, degree in enumerate(degrees) if degree % 2 == 1]
    dtype, table = dtype or torch.promote_types(torch.get_default_dtype(), torch.float32), torch.cat(weighted)
    return Grid(
        torch.cat(directions).to(dtype),
        table[:, even].to(dtype),
        table[:, odd].to(dtype),
        torch.argsort(torch.tensor(even + odd)),
        [len(u) for u in directions],
        [channels for _, channels in groups],
    )
