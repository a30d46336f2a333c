"""Real spherical harmonics with |Y_l| = 1 on the unit sphere, in e3nn's component order."""

from __future__ import annotations

import math
from typing import List

import torch
from torch import Tensor

from efa_addons._e3nn import spherical_harmonics as e3nn_harmonics

MAX_DEGREE = 11  # of e3nn's


def spherical_harmonics(max_degree: int, directions: Tensor) -> Tensor:
    """Y_lm of the vectors' directions for l = 0 to max_degree. directions (..., 3) -> (..., (max_degree+1)^2)."""
    degrees = list(range(max_degree + 1))
    double = directions.to(torch.float64)
    return e3nn_harmonics(degrees, double, normalize=True, normalization="norm").to(directions.dtype)


def solid_harmonics(max_degree: int, x: Tensor, y: Tensor, z: Tensor) -> List[Tensor]:
    """r^l Y_lm for l = 0 to max_degree, (max_degree+1)^2 tensors of the shape of x: polynomials, smooth at the origin.

    The polar axis is y. With A_m + i B_m = (z + i x)^m and Q_lm the Legendre recurrence in y and r²,
    r^l Y_l±m = sqrt(2 (l-m)!/(l+m)!) Q_lm (A_m or B_m).
    """
    square = x * x + y * y + z * z
    around_real, around_imag = [torch.ones_like(x)], [torch.zeros_like(x)]
    for m in range(max_degree):
        around_real.append(around_real[m] * z - around_imag[m] * x)
        around_imag.append(around_real[m] * x + around_imag[m] * z)
    columns: List[List[Tensor]] = []  # Q_lm for l = m to max_degree
    diagonal = 1.0
    for m in range(max_degree + 1):
        if m > 0:
            diagonal *= 2 * m - 1
        column = [torch.full_like(x, diagonal)]
        if m < max_degree:
            column.append((2 * m + 1) * y * column[0])
        for degree in range(m + 2, max_degree + 1):
            up = (2 * degree - 1) * y * column[degree - m - 1] - (degree + m - 1) * square * column[degree - m - 2]
            column.append(up / (degree - m))
        columns.append(column)
    components: List[Tensor] = []
    for degree in range(max_degree + 1):
        for order in range(-degree, degree + 1):
            m = abs(order)
            value = columns[m][degree - m]
            if m > 0:
                ratio = 1.0
                for i in range(degree - m + 1, degree + m + 1):
                    ratio *= i
                value = value * math.sqrt(2.0 / ratio) * (around_real[m] if order > 0 else around_imag[m])
            components.append(value)
    return components
