"""Euclidean rotary positional encodings (ERoPE; arXiv:2412.08541, Eqs. 13-16)."""

from __future__ import annotations

import torch
from torch import Tensor


def default_frequencies(num_features: int, max_frequency: float, max_length: float) -> Tensor:
    """ω_c = linspace(0, b_max, C)/max_length in 1/Å for C = num_features/2 > 1 pairs; a single pair gets b_max/max_length."""
    pairs = num_features // 2
    if pairs > 1:
        return torch.linspace(0.0, max_frequency, pairs) / max_length
    return torch.full([pairs], max_frequency / max_length)


def phase_factors(positions: Tensor, directions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of θ = ω_c u_m·r_n. positions (..., 3), directions (M, 3), frequencies (C,) -> (..., M, C) each.

    u·r is written out: as a matrix product it would be rounded to ten bits by TF32, or to seven under autocast.
    """
    x, y, z = positions.unsqueeze(-1).unbind(-2)
    u, v, w = directions.unbind(1)
    theta = (x * u + y * v + z * w).unsqueeze(-1) * frequencies
    return torch.cos(theta), torch.sin(theta)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates each neighbouring pair of features by its phase: (a cos θ - b sin θ, b cos θ + a sin θ).

    Args:
        x: (..., K, 2 C), features (2c, 2c+1) forming pair c.
        cos, sin: (..., M, C).

    Returns:
        (..., M, 2 K C), the rotated features; firsts of all pairs before seconds, in every direction.
    """
    pairs = x.unflatten(-1, [-1, 2])
    first, second = pairs.select(-1, 0).unsqueeze(-3), pairs.select(-1, 1).unsqueeze(-3)
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    rotated = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=-3)
    return rotated.flatten(-3).to(x.dtype)  # of lower precision than the phases under autocast
