"""Real spherical harmonics with |Y_l| = 1 on the unit sphere, in e3nn's component order."""

from __future__ import annotations

import torch
from torch import Tensor

from efa_addons._e3nn import spherical_harmonics as e3nn_harmonics


def spherical_harmonics(max_degree: int, directions: Tensor) -> Tensor:
    """Y_lm of the vectors' directions for l = 0 to max_degree. directions (..., 3) -> (..., (max_degree+1)^2)."""
    degrees = list(range(max_degree + 1))
    double = directions.to(torch.float64)
    return e3nn_harmonics(degrees, double, normalize=True, normalization="norm").to(directions.dtype)
