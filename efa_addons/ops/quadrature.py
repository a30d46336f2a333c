"""Linear-cost attention by Lebedev quadrature (arXiv:2412.08541, Eqs. 13-20 and 23).

    B_u(n) = rot_u(q_n) · Σ_{n' in graph(n)} rot_u(k_n') ⊗ v_n'
    EFA(n) = Σ_m λ_m B_{u_m}(n)

Both contractions are matrix products: the state (M D_qk x D_v per graph) and the read-out. Work: 4 N M D_qk D_v operations.
Memory: a state per block of atoms plus the rotated features (N M D_qk); nothing of size N M D_qk D_v exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from efa_addons.ops.erope import phase_factors, rotate
from efa_addons.ops.graphs import GraphBlocks, from_blocks, sum_over_graph, to_blocks


def _rotated_query_and_state(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, frequencies: Tensor, directions: Tensor, blocks: GraphBlocks
) -> tuple[Tensor, Tensor]:
    """rot(q) (B, b, M, D_qk) and the state of each block's graph (B, M D_qk, D_v)."""
    features = q.shape[2]
    cos, sin = phase_factors(to_blocks(positions, blocks), directions, frequencies)
    rotated_q = rotate(to_blocks(q.flatten(1), blocks).unflatten(-1, [-1, features]), cos, sin)
    rotated_k = rotate(to_blocks(k.flatten(1), blocks).unflatten(-1, [-1, features]), cos, sin)
    values = to_blocks(v.flatten(1), blocks)
    state = torch.bmm(rotated_k.flatten(2).transpose(1, 2), values)
    return rotated_q, sum_over_graph(state, blocks)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    directions: Tensor,
    weights: Tensor,
    blocks: GraphBlocks,
) -> Tensor:
    """Σ_m λ_m B_{u_m}(n), without the factor D_qk^(-1/2).

    Args:
        q, k: (N, K_qk, F_qk), F_qk even.
        v: (N, K_v, F_v).
        positions: (N, 3), centred per graph, Å.
        frequencies: (F_qk/2,), 1/Å.
        directions, weights: (M, 3) and (M,), Σ λ = 1.
        blocks: layout of the atoms.

    Returns:
        (N, K_v, F_v)
    """
    rotated_q, state = _rotated_query_and_state(q, k, v, positions, frequencies, directions, blocks)
    weighted_q = (rotated_q * weights.unsqueeze(-1)).flatten(2)
    return from_blocks(torch.bmm(weighted_q, state), blocks).unflatten(1, [-1, v.shape[2]])


def attend_harmonics(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    directions: Tensor,
    weighted_harmonics: Tensor,
    blocks: GraphBlocks,
) -> Tensor:
    """Z_a(n) = Σ_m λ_m Y_a(u_m) B_{u_m}(n), without the factor D_qk^(-1/2): the part of Eq. 23 that sees directions.

    Args:
        weighted_harmonics: (M, A), λ_m Y_a(u_m).
        others: as in `attend`.

    Returns:
        (N, A, K_v, F_v)
    """
    rotated_q, state = _rotated_query_and_state(q, k, v, positions, frequencies, directions, blocks)
    num_directions, width = rotated_q.shape[2], rotated_q.shape[3]
    per_direction = torch.matmul(rotated_q.transpose(1, 2), state.unflatten(1, [num_directions, width]))
    z = torch.einsum("zmbv,ma->zbav", per_direction, weighted_harmonics)
    return from_blocks(z.flatten(2), blocks).unflatten(1, [weighted_harmonics.shape[1], -1, v.shape[2]])
