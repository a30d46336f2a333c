"""Spherical Bessel functions as smooth functions of the squared argument: g_l(t) = j_l(sqrt t)/sqrt(t)^l for t >= 0.

The kernel of EFA is ω^l g_l(ω² r²) times a polynomial of degree l in the vector r. Written so, nothing divides by r or takes
its root at 0, and derivatives are the family itself: dg_l/dt = -g_{l+1}/2. g_l is largest at 0, g_l(0) = 1/(2l+1)!!.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

# In radians, for `kernel_values`: the power series has lost a digit to cancellation, Chebyshev polynomials two, mostly of t.
_TAYLOR_UP_TO = 4.0
_CHEBYSHEV_UP_TO = 30.0


def _at_zero(order: int) -> float:
    """g_l(0) = 1/(2l+1)!!."""
    value = 1.0
    for odd in range(1, order + 1):
        value /= 2 * odd + 1
    return value


def _series(order: int, t: Tensor, largest: float) -> Tensor:
    """Σ_k (-t/2)^k / (k! (2l+2k+1)!!), with as many terms as t up to `largest` needs in double or in single precision."""
    smallest = 1e-17 if t.dtype == torch.float64 else 1e-9
    terms, size = 0, 1.0
    while size > smallest:
        terms += 1
        size *= 0.5 * largest / (terms * (2 * order + 2 * terms + 1))
    # Horner's scheme, each step 1 - t/(2k (2l+2k+1)) times the rest, in one pass over memory.
    one = torch.ones([], dtype=t.dtype, device=t.device)
    total = torch.ones_like(t)
    for i in range(terms):
        k = terms - i
        total = torch.addcmul(one, t, total, value=-0.5 / (k * (2 * order + 2 * k + 1)))
    return total * _at_zero(order)


def _recurrence(order: int, t: Tensor) -> Tensor:
    """g_{l+1} = ((2l+1) g_l - g_{l-1})/t upwards from g_{-1} = cos and g_0 = sin/sqrt(t)."""
    root = torch.sqrt(t)
    g = torch.sin(root) / root
    if order > 0:
        before = torch.cos(root)
        for degree in range(order):
            g, before = ((2 * degree + 1) * g - before) / t, g
    return g


def _switch(order: int) -> float:
    """Where the recurrence has lost no more than two digits relative to g_l(0): its rounding grows as (2l-1)!!/t^l."""
    growth = 0.1
    for odd in range(1, order + 1):
        growth *= (2 * odd - 1) * (2 * odd + 1)
    return growth ** (1.0 / max(order, 1))


def spherical_bessel(order: int, t: Tensor, derivatives: int = 2) -> Tensor:
    """g_l(t) of order l for t >= 0, elementwise, of the shape and dtype of t.

    Differentiable at every t, 0 included. For the function and its first `derivatives` derivatives the error relative to their
    value at 0 is below 1e-14 in double and 5e-6 in single precision; each further derivative may lose a digit.
    """
    switch = _switch(order + derivatives)
    near = t < switch
    series = _series(order, torch.where(near, t, torch.zeros_like(t)), switch)
    return torch.where(near, series, _recurrence(order, torch.where(near, torch.full_like(t, switch), t)))


def kernel_values(order: int, squares: Tensor, t: Tensor) -> Tensor:
    """g_l(s_c t) of all products of s (C,) and t, (C, *t.shape); not to be differentiated.

    On the CPU powers of t, or beyond 4 radians Chebyshev polynomials, are computed once for all s, which take only the
    coefficients: one matrix product makes all frequencies of them. Error relative to g_l(0) about X²/6 roundings, with
    X² = max s t. Beyond 30 radians (and on other devices, which would have to be waited for) each value by itself.
    """
    if t.device.type == "cpu" and t.numel() > 0:
        largest = max(t.max().item(), 1e-30)
        phase = math.sqrt(largest * squares.max().item())
        x = t.reshape(-1) * (1 / largest)
        if phase <= _TAYLOR_UP_TO:
            coefficients = _taylor_coefficients(order, phase, t.dtype)
            scaled = (squares.double() * largest).unsqueeze(1) ** torch.arange(len(coefficients), device="cpu")
            return _combine((scaled * coefficients).to(t.dtype), _powers(x, len(coefficients)), t)
        if phase <= _CHEBYSHEV_UP_TO:
            nodes, to_coefficients = _chebyshev_nodes(phase, t.dtype)
            at_nodes = spherical_bessel(order, squares.double().unsqueeze(1) * (largest * nodes), derivatives=0)
            return _combine((at_nodes @ to_coefficients).to(t.dtype), _chebyshev(2 * x - 1, len(nodes)), t)
    return spherical_bessel(order, squares.view([-1] + [1] * t.dim()) * t, derivatives=0)


def _combine(coefficients: Tensor, basis: Tensor, t: Tensor) -> Tensor:
    return (coefficients @ basis).view(coefficients.shape[:1] + t.shape)


def _powers(x: Tensor, num: int) -> Tensor:
    """x^0 to x^(num-1), (num, *x.shape), by doubling: x^(m+i) = x^m x^i."""
    table = x.new_empty([num, x.shape[0]])
    table[0] = 1.0
    if num > 1:
        table[1] = x
    have = 2
    while have < num:
        more = min(have - 1, num - have)
        torch.mul(table[1 : more + 1], table[have - 1], out=table[have : have + more])
        have += more
    return table


def _chebyshev(x: Tensor, num: int) -> Tensor:
    """T_0(x) to T_(num-1)(x), (num, *x.shape), by doubling: T_(m+i) = 2 T_m T_i - T_(m-i)."""
    table = x.new_empty([num, x.shape[0]])
    table[0] = 1.0
    table[1] = x
    have = 2
    while have < num:
        m = have - 1
        more = min(m, num - have)
        torch.mul(table[1 : more + 1], 2 * table[m], out=table[have : have + more])
        table[have : have + more] -= table[m - more : m].flip(0)
        have += more
    return table


@functools.lru_cache(maxsize=256)
def _taylor_terms(order: int, tenths: int, double: bool) -> Tensor:
    smallest, square = (1e-17 if double else 1e-9), (0.1 * tenths) ** 2
    coefficients, size = [_at_zero(order)], 1.0
    while size > smallest:
        k = len(coefficients)
        coefficients.append(-0.5 * coefficients[-1] / (k * (2 * order + 2 * k + 1)))
        size *= 0.5 * square / (k * (2 * order + 2 * k + 1))
    return torch.tensor(coefficients, dtype=torch.float64, device="cpu")  # kept, wherever others are made now


def _taylor_coefficients(order: int, phase: float, dtype: torch.dtype) -> Tensor:
    """Of g_l in powers of t, as many as matter up to `phase` radians. Float64."""
    return _taylor_terms(order, math.ceil(10 * phase), dtype == torch.float64)


@functools.lru_cache(maxsize=256)
def _nodes_and_cosines(num: int) -> tuple[Tensor, Tensor]:
    angle = math.pi / num * (torch.arange(num, dtype=torch.float64, device="cpu") + 0.5)
    table = 2 / num * torch.cos(torch.outer(angle, torch.arange(num, dtype=torch.float64, device="cpu")))
    table[:, 0] = 1 / num
    return 0.5 + 0.5 * torch.cos(angle), table


def _chebyshev_nodes(phase: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Chebyshev nodes in [0, 1] and the matrix from values there to coefficients, as many as matter up to `phase` radians.

    The coefficients of g_l(t), t up to phase², fall as the Bessel functions J_2k(phase). Float64.
    """
    smallest = 1e-17 if dtype == torch.float64 else 1e-9
    num = math.ceil(0.5 * phase)
    while (0.25 * math.e * phase / num) ** (2 * num) > smallest:
        num += 1
    return _nodes_and_cosines(num + 1)
