"""Linear-cost attention by Lebedev quadrature (arXiv:2412.08541, Eqs. 13-20 and 23).

    B_u(n) = rot_u(q_n) · Σ_{n' in graph(n)} rot_u(k_n') ⊗ v_n'
    Z_a(n) = Σ_m λ_m Y_a(u_m) B_{u_m}(n),          a = 0 alone is plain attention

The points of a grid come in pairs u, -u, and B of the two differs in the sign of what is odd in u. With C = cos φ, S = sin φ,
φ = ω u·r, and q = (q_a, q_b) for each pair of features, harmonics of even degree need (C, S) ⊗ q, those of odd degree
(S, -C) ⊗ (-q_b, q_a), both read out of one state Σ (C, S) ⊗ k ⊗ v: half of the points do. Every group of frequencies has a
grid of its own (`ops.grid`). Both sums are matrix products, the state (R x D_v per graph) and the read-out. Work: 4 N R D_v
operations, R = M D_qk were there one grid for all. Nothing of size N M D_qk D_v exists.
"""

# Without `from __future__ import annotations`: TorchScript needs the types of lists, not their names.
from typing import List, Optional

import torch
from torch import Tensor

from efa_addons.distributed import over_ranks
from efa_addons.ops import library  # noqa: F401  registers the operators
from efa_addons.ops.backends import choice
from efa_addons.ops.graphs import GraphBlocks, for_blocks, from_blocks, sum_over_graph, to_blocks
from efa_addons.ops.grid import Grid
from efa_addons.ops.parts import Waves
from efa_addons.ops.scatter import take
from efa_addons.ops.waves import ReadOut, State


def attend(q: Tensor, k: Tensor, v: Tensor, positions: Tensor, frequencies: Tensor, grid: Grid, blocks: GraphBlocks) -> Tensor:
    """Z_a(n), without the factor D_qk^(-1/2).

    Args:
        q, k: (N, K_qk, F_qk), F_qk even.
        v: (N, K_v, F_v).
        positions: (N, 3), centred per graph, Å.
        frequencies: (F_qk/2,), 1/Å.
        grid: directions of each group of frequencies, weighted with A harmonics.
        blocks: layout of the atoms.

    Returns:
        (N, A, K_v, F_v)
    """
    dtype = positions.dtype  # of higher precision than q, k and v under autocast and in half precision
    frequencies = frequencies.to(dtype)
    tables = grid.directions.to(dtype), grid.even.to(dtype), grid.odd.to(dtype)
    grid = Grid(tables[0], tables[1], tables[2], grid.order, grid.num_directions, grid.num_channels)
    queries, keys = _by_channel(q, blocks).to(dtype), _by_channel(k, blocks).to(dtype)
    values = to_blocks(v.flatten(1), blocks).unsqueeze(1).to(dtype)
    points = to_blocks(positions, blocks).transpose(1, 2)
    turned = queries
    if grid.odd.shape[1] > 0:
        first, second = queries.chunk(2, dim=1)
        turned = torch.cat([-second, first], dim=1)
    if _in_torch():
        found = _plain(queries, turned, keys, values, points, frequencies, grid, blocks)
    else:
        found = _chunked(queries, turned, keys, values, points, frequencies, grid, blocks)
    z = found[0] if len(found) == 1 else take(torch.cat(found, dim=1), 1, grid.order)
    rows = from_blocks(z.transpose(1, 2).flatten(2), blocks).to(v.dtype)
    return rows.unflatten(1, [z.shape[1], v.shape[1], v.shape[2]])


def _by_channel(x: Tensor, blocks: GraphBlocks) -> Tensor:
    """q or k (N, K, 2 C) -> (B, 2 K, C, b), firsts of the pairs before seconds; atoms last, so that they are contiguous."""
    num_components, num_channels = x.shape[1], x.shape[2] // 2
    columns = to_blocks(x.flatten(1), blocks).transpose(1, 2)
    if blocks.num_blocks == 1:
        columns = columns.squeeze(0).contiguous().unsqueeze(0)  # of a matrix torch makes the transpose much faster
    pairs = columns.unflatten(1, [num_components, num_channels, 2])
    return pairs.permute(0, 3, 1, 2, 4).flatten(1, 2)


def _in_torch() -> bool:
    if torch.jit.is_scripting():
        return True
    else:
        return choice() == "plain"


def _of_rows(grid: Grid, of_directions: Tensor, num_d: int) -> Tensor:
    """(M, 1) -> (R, 1): what belongs to a direction, for each of its rows."""
    parts = of_directions.split(grid.num_directions)
    rows = [part.repeat_interleave(2 * num_d * n, 0) for part, n in zip(parts, grid.num_channels, strict=True)]
    return torch.cat(rows)


@torch.jit.unused
def _chunked(
    q: Tensor, turned_q: Tensor, k: Tensor, v: Tensor, r: Tensor, frequencies: Tensor, grid: Grid, blocks: GraphBlocks
) -> List[Tensor]:
    """Z of even and, if there are any, of odd degrees, (B, A, b, D_v) each, part by part."""

    def waves(weights: Optional[Tensor], turned: bool) -> Waves:
        counts = grid.num_directions, grid.num_channels
        return Waves(grid.directions, weights, *counts, blocks.graph, blocks.num_graphs, blocks.one_each, turned)

    def read_out(x: Tensor, of_state: Tensor, weights: Optional[Tensor], turned: bool) -> Tensor:
        if node:
            return torch.ops.efa_addons.wave_read_out(x, of_state, r, frequencies, *waves(weights, turned))
        return ReadOut.apply(x, of_state, r, frequencies, waves(weights, turned))

    node = choice() == "node"
    if node:
        state = torch.ops.efa_addons.wave_state(k, v, r, frequencies, *waves(None, False))
    else:
        state = State.apply(k, v, r, frequencies, waves(None, False))
    state = over_ranks(state)
    if grid.even.shape[1] == 1:
        found = [read_out(q, state * _of_rows(grid, grid.even, k.shape[1]), None, False)]
    else:
        found = [read_out(q, state, grid.even, False)]
    if grid.odd.shape[1] > 0:
        found.append(read_out(turned_q, state, grid.odd, True))
    return found


def _plain(
    q: Tensor, turned_q: Tensor, k: Tensor, v: Tensor, r: Tensor, frequencies: Tensor, grid: Grid, blocks: GraphBlocks
) -> List[Tensor]:
    """The same in operations of torch: any number of derivatives, TorchScript, traces; keeps N R numbers for each sum."""
    values = v.squeeze(1)
    rows: List[Tensor] = []
    for group in range(len(grid.num_directions)):
        features = _features(k, r, frequencies, grid, group, False)
        rows.append(torch.bmm(features.flatten(1, 2), values))
    state = for_blocks(over_ranks(sum_over_graph(torch.cat(rows, dim=1), blocks)), blocks)
    found = [_plain_read_out(q, state, r, frequencies, grid, grid.even, False)]
    if grid.odd.shape[1] > 0:
        found.append(_plain_read_out(turned_q, state, r, frequencies, grid, grid.odd, True))
    return found


def _plain_read_out(
    q: Tensor, state: Tensor, r: Tensor, frequencies: Tensor, grid: Grid, weights: Tensor, turned: bool
) -> Tensor:
    """(B, A, b, D_v) of the weights (M, A)."""
    out = torch.zeros([q.shape[0], weights.shape[1], q.shape[3], state.shape[2]], dtype=q.dtype, device=q.device)
    direction, row = 0, 0
    for group in range(len(grid.num_directions)):
        features = _features(q, r, frequencies, grid, group, turned)
        num_directions, width = features.shape[1], features.shape[2]
        own = weights[direction : direction + num_directions]
        rows = state[:, row : row + num_directions * width]
        if weights.shape[1] == 1:
            weighted = rows * own.repeat_interleave(width, 0)
            out = out + torch.bmm(features.flatten(1, 2).transpose(1, 2), weighted).unsqueeze(1)
        else:
            read = torch.matmul(features.transpose(2, 3), rows.unflatten(1, [num_directions, width]))
            out = out + torch.einsum("ma,bmnv->banv", own, read)
        direction, row = direction + num_directions, row + num_directions * width
    return out


def _features(x: Tensor, r: Tensor, frequencies: Tensor, grid: Grid, group: int, turned: bool) -> Tensor:
    """(cos φ, sin φ) ⊗ x, or (sin φ, -cos φ) ⊗ x, of a group: (B, m, 2 d c, b). u·r is no matrix product, see `ops.parts`."""
    channels, directions = grid.num_channels[group], grid.num_directions[group]
    channel, direction = sum(grid.num_channels[:group]), sum(grid.num_directions[:group])
    u = grid.directions[direction : direction + directions].unsqueeze(-1)
    # not r[:, 0] * u[:, 0] + …: inductor 2.13 gets the gradient of that wrong, in float32 and for symbolic sizes on CPUs
    along = (r.unsqueeze(1) * u).sum(2)
    theta = along.unsqueeze(2) * frequencies[channel : channel + channels].unsqueeze(1)
    cos, sin = torch.cos(theta), torch.sin(theta)
    phase = torch.stack([sin, -cos] if turned else [cos, sin], dim=2)
    mine = x[:, :, channel : channel + channels].unsqueeze(1).unsqueeze(1)
    return (phase.unsqueeze(3) * mine).flatten(2, 4)
