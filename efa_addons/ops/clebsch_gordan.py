"""Clebsch-Gordan coefficients of the real spherical harmonics, in e3nn's component order.

They are computed here, from Racah's formula, because e3nn changed the sign of some of its own between 0.4.4 and 0.6: with
those, a trained weight behind a coupling path would mean something else after an upgrade.
"""

from __future__ import annotations

import functools
from fractions import Fraction
from math import factorial, sqrt

import numpy as np


def _su2(l1: int, m1: int, l2: int, m2: int, l3: int, m3: int) -> float:
    """<l1 m1 l2 m2 | l3 m3> for m3 = m1 + m2 by Racah's formula, in exact fractions up to the root."""
    f = factorial
    square = Fraction(
        (2 * l3 + 1) * f(l3 + l1 - l2) * f(l3 - l1 + l2) * f(l1 + l2 - l3) * f(l3 + m3) * f(l3 - m3),
        f(l1 + l2 + l3 + 1) * f(l1 - m1) * f(l1 + m1) * f(l2 - m2) * f(l2 + m2),
    )
    total = Fraction(0)
    for k in range(max(0, l2 - l3 - m1), min(l1 + l2 - l3, l1 - m1, l2 + m2) + 1):
        below = (l3 - l2 + m1 + k, l3 - l1 - m2 + k)
        if min(below) < 0:
            continue
        total += Fraction(
            (-1) ** k * f(l1 - m1) * f(l1 + m1) * f(l2 - m2) * f(l2 + m2),
            f(k) * f(l1 + l2 - l3 - k) * f(l1 - m1 - k) * f(l2 + m2 - k) * f(below[0]) * f(below[1]),
        )
    return sqrt(square) * float(total)


@functools.cache
def _real_from_complex(degree: int) -> np.ndarray:
    """Rows: real harmonics of order -l..l (e3nn's order, its polar axis y) as combinations of the complex ones."""
    unitary = np.zeros((2 * degree + 1, 2 * degree + 1), dtype=complex)
    for m in range(-degree, degree + 1):
        if m == 0:
            unitary[degree, degree] = 1
            continue
        sign, a = (-1) ** abs(m), degree + abs(m)
        b = degree - abs(m)
        if m > 0:
            unitary[degree + m, a], unitary[degree + m, b] = sign / sqrt(2), 1 / sqrt(2)
        else:
            unitary[degree + m, a], unitary[degree + m, b] = -1j * sign / sqrt(2), 1j / sqrt(2)
    return unitary


@functools.cache
def clebsch_gordan(l1: int, l2: int, l3: int) -> np.ndarray:
    """Coupling tensor (2 l1+1, 2 l2+1, 2 l3+1), float64, with squared norm 2 l3+1.

    Σ_ab C[a,b,c] x_a y_b transforms like degree l3. The phase that relates real to complex harmonics is (-i)^l per degree,
    which makes every coefficient real: (1,1,0) is +δ/√3 and (1,1,1) the cross product, +ε/√2.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        return np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    table = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1), dtype=complex)
    for m1 in range(-l1, l1 + 1):
        for m2 in range(-l2, l2 + 1):
            if abs(m1 + m2) <= l3:
                table[l1 + m1, l2 + m2, l3 + m1 + m2] = _su2(l1, m1, l2, m2, l3, m1 + m2)
    u1, u2, u3 = (_real_from_complex(degree) for degree in (l1, l2, l3))
    real = np.einsum("ai,bj,ck,ijk->abc", u1, u2, u3.conj(), table)
    return np.ascontiguousarray((real * 1j ** ((l1 + l2 - l3) % 4)).real)
