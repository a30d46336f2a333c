"""The truth the other forms are tested against: EFA summed pair by pair and direction by direction, O(N² M)."""

from __future__ import annotations

import torch
from torch import Tensor


def attend_pairs(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, frequencies: Tensor, directions: Tensor, weights: Tensor, batch: Tensor
) -> Tensor:
    """Σ_n' Σ_m λ_m [rot(q_n)·rot(k_n')] v_n' written with the difference of positions; arguments as `quadrature.attend`.

    rot(q_n)·rot(k_n') = Σ_c Re(q_c conj(k_c) exp(i ω_c u·(r_n - r_n'))), with q_c the complex number of pair c.
    """
    qc, kc = (
        torch.view_as_complex(q.unflatten(-1, [-1, 2]).contiguous()),
        torch.view_as_complex(k.unflatten(-1, [-1, 2]).contiguous()),
    )
    out = torch.zeros_like(v)
    for n in range(q.shape[0]):
        for other in range(q.shape[0]):
            if batch[n] != batch[other]:
                continue
            phase = (directions @ (positions[n] - positions[other]))[:, None] * frequencies
            kernel = (weights[:, None] * torch.polar(torch.ones_like(phase), phase)).sum(0)
            out[n] += (qc[n] * kc[other].conj() * kernel).sum().real * v[other]
    return out
