"""What an attention gives to each pair of atoms: the weights of the sum that it is, in closed form, to be looked at.

With p_c = Re(q_c conj k_c) for even degrees l of Y and -Im(q_c conj k_c) for odd ones, and the constants c_l of tensor
integration,

    Z_lm(n) = Σ_n' W_l(n, n') Y_lm(r̂) v_n',   W_l(n, n') = Σ_c w_lc(n, n') j_l(ω_c r),
    w_lc = c_l (-1)^⌊l/2⌋ D_qk^(-1/2) p_c(n, n') / normalization.

Plain attention is l = 0, whose j_0 is sinc. What makes q and k of features is in w, what the distance does is in j_l.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.special import spherical_jn
from torch import Tensor

from efa_addons.nn.attention import EuclideanFastAttention


class PairKernels(NamedTuple):
    """Of all pairs (n, n') of N atoms; pairs of different graphs have weights of zero."""

    distances: np.ndarray  # r (N, N), Å
    couplings: np.ndarray  # w_lc (L_Y+1, C, N, N)
    weights: np.ndarray  # W_l (L_Y+1, N, N)


def pair_kernels(
    attention: EuclideanFastAttention, inputs: Tensor, positions: Tensor, batch: Tensor | None = None
) -> PairKernels:
    """The kernels of an attention on the features and positions (and graphs) that its forward is given.

    Made in double precision from q and k in the attention's own; C N² numbers for each degree of Y.
    """
    with torch.no_grad():
        q, k, _ = attention.project(inputs.detach())
        frequencies = attention.frequencies.detach().double().cpu().numpy()
        points = positions.double().cpu().numpy()
    queries, keys = _by_frequency(q), _by_frequency(k)
    distances = np.linalg.norm(points[:, None] - points, axis=2)
    seen = np.ones_like(distances)
    if batch is not None:
        graph = batch.cpu().numpy()
        seen = (graph[:, None] == graph).astype(float)
    others = seen if attention.include_self else seen - np.eye(len(points))
    products = np.einsum("cnk,cmk->cnm", queries, keys.conj())
    couplings, weights = [], []
    for degree, constant in enumerate(attention.degree_constants):
        part = products.real if degree % 2 == 0 else -products.imag
        coupling = constant * (-1.0) ** (degree // 2) * part * others
        couplings.append(coupling)
        weights.append(sum(w * spherical_jn(degree, omega * distances) for w, omega in zip(coupling, frequencies, strict=True)))
    return PairKernels(distances, np.stack(couplings), np.stack(weights))


def _by_frequency(x: Tensor) -> np.ndarray:
    """q or k (N, K, 2C) as complex numbers (C, N, K): features 2c and 2c+1 are what the frequency c rotates."""
    pairs = x.double().cpu().numpy().reshape(*x.shape[:2], x.shape[2] // 2, 2)
    return np.moveaxis(pairs[..., 0] + 1j * pairs[..., 1], 2, 0)
