"""Lebedev quadrature on the unit sphere, and which grid a phase needs.

The quadrature of EFA (arXiv:2412.08541, Eq. 20) replaces (1/4π)∫ f(u) du by Σ_m λ_m f(u_m), Σ λ = 1. It is rotationally
invariant as far as Σ_m λ_m cos(x u_m·d) equals sinc(x) for every direction d, where x = ω r is at most the maximal
frequency b_max (radians) for distances up to max_length.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np
import torch

from efa_addons.errors import EFAError
from efa_addons.ops.harmonics import spherical_harmonics

# Number of points -> algebraic degree (Lebedev and Laikov, Doklady Mathematics 59, 477, 1999), as scipy ships them.
LEBEDEV_DEGREES: dict[int, int] = {
    6: 3, 14: 5, 26: 7, 38: 9, 50: 11, 74: 13, 86: 15, 110: 17, 146: 19, 170: 21, 194: 23, 230: 25, 266: 27, 302: 29,
    350: 31, 434: 35, 590: 41, 770: 47, 974: 53, 1202: 59, 1454: 65, 1730: 71, 2030: 77, 2354: 83, 2702: 89, 3074: 95,
    3470: 101, 3890: 107, 4334: 113, 4802: 119, 5294: 125, 5810: 131,
}  # fmt: skip

# These have negative weights, which amplify rounding: used on request, never chosen by tolerance.
_NEGATIVE_WEIGHTS = (74, 230, 266)


def _scipy(name: str) -> Any:
    """A part of scipy, imported by name where it is used: packaged NequIP models carry this file, but not scipy."""
    return importlib.import_module(f"scipy.{name}")


def lebedev_grid(lebedev_num: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the Lebedev grid with exactly `lebedev_num` points.

    Returns:
        directions (M, 3), unit vectors, and weights (M,) with sum 1, both float64.

    Raises:
        EFAError: no such grid; the message names the nearest ones.
    """
    if lebedev_num not in LEBEDEV_DEGREES:
        below = [n for n in LEBEDEV_DEGREES if n < lebedev_num]
        above = [n for n in LEBEDEV_DEGREES if n > lebedev_num]
        near = " or ".join(str(n) for n in below[-1:] + above[:1])
        raise EFAError(
            f"no Lebedev grid has lebedev_num={lebedev_num} points; use {near} (all: {', '.join(map(str, LEBEDEV_DEGREES))})."
        )
    points, weights = _scipy("integrate").lebedev_rule(LEBEDEV_DEGREES[lebedev_num])
    return np.ascontiguousarray(points.T), weights / weights.sum()


@functools.cache
def _test_directions(num: int = 200) -> np.ndarray:
    """Directions (num, 3) spread over the sphere on a spiral, none of them on a symmetry axis of the grids."""
    i = np.arange(num) + 0.5
    z = 1 - 2 * i / num
    phi = i * np.pi * (3 - np.sqrt(5))
    rho = np.sqrt(1 - z**2)
    return np.stack([rho * np.cos(phi), rho * np.sin(phi), z], axis=1)


@functools.lru_cache(maxsize=1024)
def quadrature_error(lebedev_num: int, phase: float, max_degree_sph: int = 0) -> float:
    """Largest error of the integral of exp(i x u·d) Y_l(u), for l up to max_degree_sph and x in [phase/2, phase].

    The exact value is i^l j_l(x) Y_l(d), |Y_l| = 1. The error is the norm over the components of Y_l, so that none in any frame
    is larger. For l = 0 it is that of the kernel sinc(x). Taken over 200 directions d.
    """
    special = _scipy("special")
    points, weights = lebedev_grid(lebedev_num)
    directions = _test_directions()
    cosine = points @ directions.T
    on_grid, along = (spherical_harmonics(max_degree_sph, torch.as_tensor(u)).numpy() for u in (points, directions))
    error = 0.0
    for x in np.linspace(0.5, 1.0, 9) * phase:
        numeric = (on_grid * weights[:, None]).T @ np.exp(1j * x * cosine)
        for degree in range(max_degree_sph + 1):
            components = slice(degree**2, (degree + 1) ** 2)
            exact = 1j**degree * special.spherical_jn(degree, x) * along[:, components].T
            error = max(error, float(np.linalg.norm(numeric[components] - exact, axis=0).max()))
    return error


@functools.lru_cache(maxsize=256)
def lebedev_num_for(max_phase: float, tolerance: float, max_degree_sph: int = 0) -> int:
    """The smallest Lebedev grid whose quadrature error stays below `tolerance` up to the phase `max_phase`.

    Args:
        max_phase: largest ω r in radians, that is max_frequency for distances up to max_length.
        tolerance: bound on the error of the kernel, for example 1e-5.
        max_degree_sph: highest degree of spherical harmonics multiplied in (tensor integration).

    Raises:
        EFAError: no grid is fine enough.
    """
    if not tolerance > 0:
        raise EFAError(f"tolerance must be positive, got {tolerance}.")
    for num in LEBEDEV_DEGREES:
        if num not in _NEGATIVE_WEIGHTS and quadrature_error(num, max_phase, max_degree_sph) <= tolerance:
            return num
    largest = max(LEBEDEV_DEGREES)
    raise EFAError(
        f"no Lebedev grid up to {largest} points reaches tolerance={tolerance} at max_frequency={max_phase:.3f} "
        f"(the error there is {quadrature_error(largest, max_phase, max_degree_sph):.1e}); lower max_frequency, raise "
        "tolerance, or use method: pairwise."
    )


@functools.lru_cache(maxsize=256)
def max_phase_for(lebedev_num: int, tolerance: float, max_degree_sph: int = 0) -> float:
    """The largest phase ω r (radians) up to which `lebedev_num` points keep the quadrature error below `tolerance`."""
    low, high = 0.0, 1.0
    while quadrature_error(lebedev_num, high, max_degree_sph) <= tolerance:
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = 0.5 * (low + high)
        if quadrature_error(lebedev_num, middle, max_degree_sph) <= tolerance:
            low = middle
        else:
            high = middle
    return low
