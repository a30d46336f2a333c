"""How the atoms of a batch are laid out for matrix products per graph.

Sums over the atoms of a graph are batched matrix products over blocks: each graph's atoms fill blocks of equal size, the
last one with empty slots. The shapes of the static layout follow from the numbers of atoms and graphs alone, so that it needs
no transfer from the device and traces with symbolic sizes; the exact one (CPU, where looking is free) wastes less.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from efa_addons.ops.tracing import tracing


class GraphBlocks(NamedTuple):
    """B blocks of b slots holding the N atoms of G graphs."""

    slot: Tensor  # (N,) index of each atom in the B b slots
    graph: Tensor  # (B,) graph of each block; unused blocks name graph G-1 and stay zero
    num_graphs: int
    num_blocks: int
    block_size: int
    one_each: bool  # graph g is block g, no more and no fewer


def _static_shapes(batch: Tensor) -> bool:
    """True where sizes must not depend on the data: on devices that would have to be waited for, and in traces."""
    if torch.jit.is_scripting():
        return batch.is_cuda
    else:
        return batch.device.type != "cpu" or tracing()


def atoms_per_graph(batch: Tensor, num_graphs: int) -> Tensor:
    """(G,) number of atoms of each graph. batch (N,), in any order."""
    return torch.zeros([num_graphs], dtype=batch.dtype, device=batch.device).index_add(0, batch, torch.ones_like(batch))


def graph_blocks(batch: Tensor, num_graphs: int) -> GraphBlocks:
    """Lays out atoms in blocks.

    Args:
        batch: (N,) graph of each atom, in any order.
        num_graphs: G; graphs may be empty.
    """
    num_atoms = batch.shape[0]
    counts = atoms_per_graph(batch, num_graphs)
    static = _static_shapes(batch)
    block_size = num_atoms // num_graphs + 1
    one_each = False
    if not static:
        largest = max(int(counts.max().item()), 1)
        # One block per graph unless that would leave more than a third of the slots empty.
        one_each = 2 * num_graphs * largest <= 3 * (num_atoms + num_graphs)
        if one_each:
            block_size = largest
    blocks = (counts + (block_size - 1)) // block_size
    if one_each:
        blocks = torch.ones_like(blocks)
    last_block = blocks.cumsum(0)
    if static:
        num_blocks = (num_atoms + num_graphs * (block_size - 1)) // block_size
    else:
        num_blocks = int(last_block[-1].item())
    order = torch.argsort(batch, stable=True)
    first_atom = counts.cumsum(0) - counts
    rank_sorted = torch.arange(num_atoms, device=batch.device) - first_atom[batch[order]]
    rank = torch.empty_like(rank_sorted).index_copy(0, order, rank_sorted)
    slot = (last_block - blocks)[batch] * block_size + rank
    block_number = torch.arange(num_blocks, device=batch.device)
    graph = torch.searchsorted(last_block, block_number, right=True).clamp(max=num_graphs - 1)
    return GraphBlocks(slot, graph, num_graphs, num_blocks, block_size, one_each)


def to_blocks(x: Tensor, blocks: GraphBlocks) -> Tensor:
    """(N, ...) -> (B, b, ...), empty slots zero."""
    flat = x.new_zeros([blocks.num_blocks * blocks.block_size, x.shape[1]]).index_copy(0, blocks.slot, x)
    return flat.view(blocks.num_blocks, blocks.block_size, x.shape[1])


def from_blocks(x: Tensor, blocks: GraphBlocks) -> Tensor:
    """(B, b, ...) -> (N, ...)."""
    return x.flatten(0, 1).index_select(0, blocks.slot)


def sum_over_graph(state: Tensor, blocks: GraphBlocks) -> Tensor:
    """Per-block sums (B, ...) -> for each block the sum over its whole graph (B, ...)."""
    if blocks.one_each:
        return state
    total = state.new_zeros([blocks.num_graphs, state.shape[1], state.shape[2]])
    return total.index_add(0, blocks.graph, state).index_select(0, blocks.graph)


def not_alone(batch: Tensor, num_graphs: int) -> Tensor:
    """(N,) true for atoms that share their graph with others."""
    return atoms_per_graph(batch, num_graphs).index_select(0, batch) > 1


def center_positions(positions: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Positions (N, 3) relative to the mean of their graph.

    EFA does not depend on the origin, so the mean is a constant to differentiation. In single precision a distant origin
    costs digits of the phase; given in double precision, positions are centred before they are rounded.
    """
    constant = positions.detach()
    total = constant.new_zeros([num_graphs, 3]).index_add(0, batch, constant)
    mean = total / atoms_per_graph(batch, num_graphs).clamp(min=1).unsqueeze(1)
    return positions - mean.index_select(0, batch)
