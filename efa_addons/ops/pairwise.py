"""The closed form of the attention: the integral over directions done exactly, pair by pair, O(n²) per graph.

With q_c = q_2c + i q_2c+1 for each pair of features, r = r_n - r_n' and g_l of `ops.bessel`, the integral of
exp(i ω u·r) Y_lm(u) over directions u gives

    Z_lm(n) = Σ_n' W_l(n, n') |r|^l Y_lm(r) v_n',    W_l(n, n') = (-1)^⌊l/2⌋ Σ_c ω_c^l g_l(ω_c² r²) p_c(n, n'),

with p_c = Re(q_c conj k_c) for even and -Im(q_c conj k_c) for odd l; plain attention is l = 0, where ω^l g_l is sinc(ω r).
This is what the quadrature of `ops.quadrature` converges to. It is equivariant at every distance, and everything is smooth
where atoms coincide. Sums over atoms are batched matrix products over graphs of similar size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, List

import torch
from torch import Tensor

from efa_addons.dtype import without_autocast
from efa_addons.ops.backends import choice
from efa_addons.ops.bessel import kernel_values, spherical_bessel
from efa_addons.ops.graphs import PairBlocks, from_pair_blocks, to_pair_blocks
from efa_addons.ops.harmonics import solid_harmonics

# Values of g_l handled at a time, and kept for the derivatives: on a CPU 0.5 MB in single precision, in cache, and those of one
# graph of 300 atoms; elsewhere what keeps the device busy.
_PART, _PART_ELSEWHERE = 2**17, 2**25
_KEEP, _KEEP_ELSEWHERE = 2**20, 2**25


class _Kernel:
    """g_l(s_c t) for s (C,), t (B, b, b), by order l and in parts of (blocks, rows). Kept when small, else computed again."""

    def __init__(self, t: Tensor, squares: Tensor) -> None:
        self.t, self.squares = t.detach(), squares.detach()
        self.kept: dict[tuple[int, int, int], Tensor] = {}
        num_blocks, size = t.shape[:2]
        part, keep = (_PART, _KEEP) if t.device.type == "cpu" else (_PART_ELSEWHERE, _KEEP_ELSEWHERE)
        per_row = max(1, size * squares.shape[0])
        self.rows = max(1, min(size, part // per_row))
        self.blocks = max(1, part // (per_row * size)) if self.rows == size else 1
        self.keep = num_blocks * size * per_row <= keep

    def parts(self, order: int) -> Iterator[tuple[slice, slice, Tensor]]:
        """Blocks, rows and the values (C, blocks, rows, b) there."""
        for block in range(0, self.t.shape[0], self.blocks):
            for row in range(0, max(1, self.t.shape[1]), self.rows):
                values = self.kept.get((order, block, row))
                blocks, rows = slice(block, block + self.blocks), slice(row, row + self.rows)
                if values is None:
                    values = kernel_values(order, self.squares, self.t[blocks, rows])
                    if self.keep:
                        self.kept[(order, block, row)] = values
                yield blocks, rows, values


class _Weights(torch.autograd.Function):
    """W_ij = Σ_c g_l(s_c t_ij) q_ci·k_cj: q, k (C, B, D, b), t (B, b, b) symmetric, s (C,) -> (B, b, b).

    With `_Sums` closed under differentiation: both are derivatives of Φ = Σ_ijc G_ij g_l(s_c t_ij) q_ci·k_cj, this one by G,
    the other by k (and, t being symmetric, by q). By t the order rises: dg_l/dt = -g_{l+1}/2. From one derivative to the next
    only what has the size of the inputs is kept, apart from a small `_Kernel`.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, q: Tensor, k: Tensor, t: Tensor, squares: Tensor, order: int, kernel: _Kernel) -> Tensor:
        ctx.save_for_backward(q, k, t, squares)
        ctx.order, ctx.kernel = order, kernel
        parts = []
        for blocks, rows, values in kernel.parts(order):
            products = torch.matmul(q[:, blocks, :, rows].transpose(2, 3), k[:, blocks])
            parts.append(products.mul_(values).sum(0).flatten(0, 1))
        return (torch.cat(parts) if len(parts) > 1 else parts[0]).view(t.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, t, squares = ctx.saved_tensors
        by_q = by_k = None
        if ctx.needs_input_grad[0]:
            by_q = _Sums.apply(grad.transpose(1, 2), k, t, squares, ctx.order, ctx.kernel)
        if ctx.needs_input_grad[1]:
            by_k = _Sums.apply(grad, q, t, squares, ctx.order, ctx.kernel)
        return by_q, by_k, *_by_phase(ctx, grad, q, k, t, squares), None, None


class _Sums(torch.autograd.Function):
    """S_cj = Σ_i G_ij g_l(s_c t_ij) q_ci: G (B, b, b), q (C, B, D, b) -> (C, B, D, b); see `_Weights`."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, weights: Tensor, q: Tensor, t: Tensor, squares: Tensor, order: int, kernel: _Kernel) -> Tensor:
        ctx.save_for_backward(weights, q, t, squares)
        ctx.order, ctx.kernel = order, kernel
        parts: list[Tensor] = []
        for blocks, rows, values in kernel.parts(order):
            part = torch.matmul(q[:, blocks, :, rows], weights[blocks, rows] * values)
            if rows.start == 0:
                parts.append(part)
            else:
                parts[-1] = parts[-1] + part
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weights, q, t, squares = ctx.saved_tensors
        by_weights = by_q = None
        if ctx.needs_input_grad[0]:
            by_weights = _Weights.apply(q, grad, t, squares, ctx.order, ctx.kernel)
        if ctx.needs_input_grad[1]:
            by_q = _Sums.apply(weights.transpose(1, 2), grad, t, squares, ctx.order, ctx.kernel)
        return by_weights, by_q, *_by_phase(ctx, weights, q, grad, t, squares), None, None


def _by_phase(
    ctx: Any, weights: Tensor, q: Tensor, k: Tensor, t: Tensor, squares: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Derivatives of Φ by t and by s, the third and fourth inputs of `_Weights` and of `_Sums`."""
    by_t = by_squares = None
    if ctx.needs_input_grad[2]:
        scaled = q * (-0.5 * squares).view(-1, 1, 1, 1)
        by_t = weights * _Weights.apply(scaled, k, t, squares, ctx.order + 1, ctx.kernel)
    if ctx.needs_input_grad[3]:
        sums = _Sums.apply(weights * t, q, t, squares, ctx.order + 1, ctx.kernel)
        by_squares = -0.5 * (sums * k).sum([1, 2, 3])
    return by_t, by_squares


def _weights(q: List[Tensor], k: Tensor, t: Tensor, squares: Tensor) -> List[Tensor]:
    """Σ_c g_l(s_c t) q_c·k_c, (B, b, b), for l = 0, 1, …, a q (C, B, D, b) for each; k (C, B, D, b), t (B, b, b), s (C,)."""
    q, k = [each.to(t.dtype) for each in q], k.to(t.dtype)
    if torch.jit.is_scripting():
        return _traceable_weights(q, k, t, squares)
    else:
        if choice() != "chunked":
            return _traceable_weights(q, k, t, squares)
        kernel = _Kernel(t, squares)
        return [_Weights.apply(each, k, t, squares, order, kernel) for order, each in enumerate(q)]


def _traceable_weights(q: List[Tensor], k: Tensor, t: Tensor, squares: Tensor) -> List[Tensor]:
    """The same in operations that TorchScript, traces and torch.func know, with C B b² numbers kept for each."""
    phases = squares.view(-1, 1, 1, 1) * t
    weights: List[Tensor] = []
    for order in range(len(q)):
        weights.append((torch.matmul(q[order].transpose(2, 3), k) * spherical_bessel(order, phases)).sum(0))
    return weights


def _by_frequency(x: Tensor, blocks: PairBlocks) -> Tensor:
    """q or k (N, K, 2 C) -> (C, B, 2 K, b): what rotates with one frequency together, firsts of the pairs before seconds."""
    num_components, num_channels = x.shape[1], x.shape[2] // 2
    rows = to_pair_blocks(x.flatten(1), blocks).view(blocks.num_blocks, blocks.block_size, num_components, num_channels, 2)
    return rows.permute(3, 0, 4, 2, 1).flatten(2, 3)


def _turned(q: Tensor) -> Tensor:
    """(a, b) -> (-b, a): with it q·k becomes -Im(q conj k)."""
    first, second = q.chunk(2, dim=2)
    return torch.cat([-second, first], dim=2)


def attend_pairs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    layout: List[PairBlocks],
    include_self: bool = True,
) -> Tensor:
    """Σ_n' Σ_c sinc(ω_c r) Re(q_c conj k_c) v_n', without the factor D_qk^(-1/2).

    Args:
        q, k: (N, K_qk, F_qk), F_qk even.
        v: (N, K_v, F_v).
        positions: (N, 3), Å.
        frequencies: (F_qk/2,), 1/Å.
        layout: one or more, see `ops.graphs.pair_blocks`.
        include_self: keep the term n' = n.

    Returns:
        (N, K_v, F_v); zero for atoms that the layout leaves out.
    """
    return attend_pairs_harmonics(q, k, v, positions, frequencies, [1.0], layout, include_self).squeeze(1)


def attend_pairs_harmonics(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    degree_constants: List[float],
    layout: List[PairBlocks],
    include_self: bool = True,
) -> Tensor:
    """c_l Z_lm(n) for l = 0 to L_Y, without the factor D_qk^(-1/2).

    Args:
        degree_constants: c_l, L_Y + 1 of them.
        others: as in `attend_pairs`.

    Returns:
        (N, (L_Y+1)^2, K_v, F_v); zero for atoms that the layout leaves out.
    """
    components = len(degree_constants) * len(degree_constants)
    width = components * v.shape[1] * v.shape[2]
    found = [_attend_block(q, k, v, positions, frequencies, degree_constants, blocks, include_self) for blocks in layout]
    out = from_pair_blocks([z.view(-1, width) for z in found], layout, v.shape[0])
    return out.view(-1, components, v.shape[1], v.shape[2])


def _attend_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    degree_constants: List[float],
    blocks: PairBlocks,
    include_self: bool,
) -> Tensor:
    """`attend_pairs_harmonics` of one layout: (B, b, (L_Y+1)^2 K_v F_v)."""
    max_degree = len(degree_constants) - 1
    # trained ones may be in half precision, which their squares and powers are not
    frequencies = frequencies.to(positions.dtype)
    # Not transposed: hosts call view on the forces, and the gradient would not be contiguous.
    points = torch.stack(to_pair_blocks(positions, blocks).unbind(2), dim=1)
    between = points.unsqueeze(3) - points.unsqueeze(2)
    queries, keys, values = _by_frequency(q, blocks), _by_frequency(k, blocks), to_pair_blocks(v.flatten(1), blocks)
    scaled: List[Tensor] = []
    for degree in range(max_degree + 1):
        scale = degree_constants[degree] * (-1.0) ** (degree // 2)
        if degree == 0:
            scaled.append(queries if scale == 1.0 else scale * queries)
        else:
            turned = queries if degree % 2 == 0 else _turned(queries)
            scaled.append((scale * frequencies**degree).view(-1, 1, 1, 1) * turned)
    weights = _weights(scaled, keys, between.square().sum(1), frequencies * frequencies)
    same = blocks.same
    if same is not None:
        weights = [weight * same for weight in weights]
    if not include_self:  # for l > 0 the term is zero by itself
        others = 1 - torch.eye(blocks.block_size, dtype=v.dtype, device=v.device)
        weights[0] = weights[0] * others
    if max_degree == 0:
        return torch.bmm(weights[0].to(values.dtype), values)
    x, y, z = between.unbind(1)
    harmonics = solid_harmonics(max_degree, x, y, z)
    terms: List[Tensor] = []
    for degree in range(max_degree + 1):
        for a in range(degree * degree, (degree + 1) * (degree + 1)):
            terms.append((weights[degree] * harmonics[a]).to(values.dtype))
    # rows (atom, component): their products with the values come out side by side
    width = len(terms) * values.shape[2]
    return torch.bmm(torch.stack(terms, dim=2).flatten(1, 2), values).view(blocks.num_blocks, blocks.block_size, width)
