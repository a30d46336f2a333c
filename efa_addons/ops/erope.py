"""Frequencies of the Euclidean rotary positional encodings (ERoPE; arXiv:2412.08541, Eqs. 13-16)."""

from __future__ import annotations

import torch
from torch import Tensor


def default_frequencies(num_features: int, max_frequency: float, max_length: float) -> Tensor:
    """ω_c = linspace(0, b_max, C)/max_length in 1/Å for C = num_features/2 > 1 pairs; a single pair gets b_max/max_length.

    In double precision.
    """
    pairs = num_features // 2
    if pairs > 1:
        return torch.linspace(0.0, max_frequency, pairs, dtype=torch.float64) / max_length
    return torch.full([pairs], max_frequency / max_length, dtype=torch.float64)
