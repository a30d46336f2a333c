"""How the atoms of a batch are laid out for matrix products per graph.

Sums over the atoms of a graph are batched matrix products over blocks: each graph's atoms fill blocks of equal size, the
last one with empty slots. The shapes of the static layout follow from the numbers of atoms and graphs alone, so that it needs
no transfer from the device and traces with symbolic sizes; the exact one (CPU, where looking is free) wastes less.
"""

# Without `from __future__ import annotations`: TorchScript needs the types of PairBlocks in a list, not their names.
from typing import List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from efa_addons.distributed import over_ranks
from efa_addons.ops.scatter import put_rows, sum_rows, take
from efa_addons.ops.tracing import capturing, tracing, transformed


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


def _is_symbolic(number: int) -> bool:
    """True for a size that stands for any number in a trace: quotients of two of them are more than torch can reason about."""
    if torch.jit.is_scripting():
        return False
    else:
        return isinstance(number, torch.SymInt)


def atoms_per_graph(batch: Tensor, num_graphs: int) -> Tensor:
    """(G,) number of atoms of each graph. batch (N,), in any order."""
    return torch.zeros([num_graphs], dtype=batch.dtype, device=batch.device).index_add(0, batch, torch.ones_like(batch))


def graph_sizes(batch: Tensor, num_graphs: int) -> Optional[List[int]]:
    """Number of atoms of each graph; none where sizes must not be looked at."""
    if _static_shapes(batch):
        return None
    counts = atoms_per_graph(batch, num_graphs)
    if torch.jit.is_scripting():
        sizes: List[int] = counts.tolist()
        return sizes
    else:
        # within transforms one by one: tolist could not look into them in torch 2.5
        return [int(count.item()) for count in counts.unbind()] if transformed() else counts.tolist()


def _rank_in_graph(batch: Tensor, counts: Tensor) -> Tensor:
    """(N,) number of each atom within its graph, from 0."""
    order = torch.argsort(batch, stable=True)
    first_atom = counts.cumsum(0) - counts
    rank_sorted = torch.arange(batch.shape[0], device=batch.device) - first_atom[batch[order]]
    return torch.empty_like(rank_sorted).index_copy(0, order, rank_sorted)


def graph_blocks(batch: Tensor, num_graphs: int) -> GraphBlocks:
    """Lays out atoms in blocks.

    Args:
        batch: (N,) graph of each atom, in any order.
        num_graphs: G; graphs may be empty.
    """
    num_atoms = batch.shape[0]
    if not _is_symbolic(num_graphs) and num_graphs == 1:
        return GraphBlocks(torch.arange(num_atoms, device=batch.device), batch.new_zeros([1]), 1, 1, num_atoms, True)
    counts = atoms_per_graph(batch, num_graphs)
    static = _static_shapes(batch)
    block_size = num_atoms // num_graphs + 1
    if static and _is_symbolic(num_graphs):
        block_size = 32
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
    slot = (last_block - blocks)[batch] * block_size + _rank_in_graph(batch, counts)
    block_number = torch.arange(num_blocks, device=batch.device)
    graph = torch.searchsorted(last_block, block_number, right=True).clamp(max=num_graphs - 1)
    return GraphBlocks(slot, graph, num_graphs, num_blocks, block_size, one_each)


def to_blocks(x: Tensor, blocks: GraphBlocks) -> Tensor:
    """(N, ...) -> (B, b, ...), empty slots zero."""
    flat = put_rows(x, blocks.slot, blocks.num_blocks * blocks.block_size)
    return flat.view(blocks.num_blocks, blocks.block_size, x.shape[1])


def from_blocks(x: Tensor, blocks: GraphBlocks) -> Tensor:
    """(B, b, ...) -> (N, ...)."""
    return take(x.flatten(0, 1), 0, blocks.slot)


def sum_over_graph(state: Tensor, blocks: GraphBlocks) -> Tensor:
    """Per-block sums (B, ...) -> the sum over each graph (G, ...)."""
    if blocks.one_each:
        return state
    return sum_rows(state, blocks.graph, blocks.num_graphs)


def for_blocks(of_graph: Tensor, blocks: GraphBlocks) -> Tensor:
    """What belongs to a graph (G, ...) -> for each of its blocks (B, ...)."""
    return of_graph if blocks.one_each else take(of_graph, 0, blocks.graph)


def not_alone(batch: Tensor, num_graphs: int) -> Tensor:
    """(N,) true for atoms that share their graph with others."""
    return over_ranks(atoms_per_graph(batch, num_graphs)).index_select(0, batch) > 1


def center_positions(positions: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Positions (N, 3) relative to the mean of their graph.

    EFA does not depend on the origin, so the mean is a constant to differentiation. In single precision a distant origin
    costs digits of the phase; given in double precision, positions are centred before they are rounded.
    """
    constant = positions.detach()
    total = sum_rows(constant, batch, num_graphs)
    number = over_ranks(atoms_per_graph(batch, num_graphs))
    mean = over_ranks(total) / number.clamp(min=1).unsqueeze(1)
    return positions - take(mean, 0, batch)


class PairBlocks(NamedTuple):
    """B graphs of similar size, each in a block of b slots, for sums over all pairs of atoms of a graph."""

    atoms: Tensor  # (n,) the atoms of these graphs
    slot: Tensor  # (n,) index of each in the B b slots
    num_blocks: int
    block_size: int
    in_order: bool  # these are all atoms of the batch, each in the slot of its own number: blocks are a view
    same: Optional[Tensor]  # (N, N) where one block holds several graphs: true for pairs of the same graph


def pair_blocks(batch: Tensor, sizes: List[int], largest: int) -> List[PairBlocks]:
    """Lays out graphs for sums over pairs; those of similar size share a layout.

    Args:
        batch: (N,) graph of each atom, in any order.
        sizes: number of atoms of each of the G graphs.
        largest: graphs with more atoms than this are left out.
    """
    num_atoms, num_graphs = batch.shape[0], len(sizes)
    number = torch.arange(num_atoms, device=batch.device)
    if num_atoms == 0:  # one empty slot, so that the result hangs together with the arguments as for other sizes
        return [PairBlocks(number, number, 1, 1, False, None)]
    by_size: List[Tuple[int, int]] = []
    for graph in range(num_graphs):
        if 0 < sizes[graph] <= largest:
            by_size.append((-sizes[graph], graph))
    by_size.sort()
    pairs_per_layout = 4000  # so many with an empty slot cost as much as another layout
    groups: List[List[int]] = []
    empty = 0
    for entry in by_size:
        graph = entry[1]
        if len(groups) > 0:
            largest_here = sizes[groups[-1][0]]
            empty += largest_here * largest_here - sizes[graph] * sizes[graph]
        if len(groups) == 0 or empty > pairs_per_layout:
            groups.append([graph])
            empty = 0
        else:
            groups[-1].append(graph)

    in_order = bool((batch[1:] >= batch[:-1]).all().item())
    all_here = len(groups) == 1 and len(groups[0]) == num_graphs
    if all_here and num_atoms == num_graphs * sizes[groups[0][0]] and in_order:
        return [PairBlocks(number, number, num_graphs, sizes[groups[0][0]], True, None)]
    counts = torch.tensor(sizes, dtype=torch.long, device=batch.device)
    rank = _rank_in_graph(batch, counts)
    layout: List[PairBlocks] = []
    for group in groups:
        block = torch.full([num_graphs], -1, dtype=torch.long, device=batch.device)
        block[torch.tensor(group, dtype=torch.long, device=batch.device)] = torch.arange(len(group), device=batch.device)
        block_of_atom = block[batch]
        atoms = torch.nonzero(block_of_atom >= 0)[:, 0]
        block_size = sizes[group[0]]
        slot = block_of_atom[atoms] * block_size + rank[atoms]
        layout.append(PairBlocks(atoms, slot, len(group), block_size, False, None))
    return layout


def dense_pairs(batch: Tensor) -> List[PairBlocks]:
    """All N² pairs of the batch in one block with those of different graphs marked: needs no look at the sizes."""
    number = torch.arange(batch.shape[0], device=batch.device)
    return [PairBlocks(number, number, 1, batch.shape[0], True, batch.unsqueeze(1) == batch)]


def _traced() -> bool:
    if torch.jit.is_scripting():
        return False
    else:
        return tracing()


def _can_be_seen(batch: Tensor) -> bool:
    """Whether values on a device can be waited for."""
    if torch.jit.is_scripting():
        return True
    else:
        hidden = batch.device.type == "meta" or tracing() or transformed()
        return not (hidden or capturing(batch.device))


def device_pairs(batch: Tensor, num_graphs: int) -> List[PairBlocks]:
    """As `pair_blocks` of all graphs, where `batch` is on a device.

    The device is waited for once, to see the sizes of more than one graph. Where these cannot be seen (traces, transforms,
    captures of CUDA graphs, tensors without memory): `dense_pairs`.
    """
    num_atoms = batch.shape[0]
    if not _traced() and num_graphs == 1 and num_atoms > 0:
        number = torch.arange(num_atoms, device=batch.device)
        return [PairBlocks(number, number, 1, num_atoms, True, None)]
    if not _can_be_seen(batch):
        return dense_pairs(batch)
    here = batch.cpu()
    counts: List[int] = atoms_per_graph(here, num_graphs).tolist()
    layout: List[PairBlocks] = []
    for blocks in pair_blocks(here, counts, num_atoms):
        # CUDA has copied what is in common memory when the call returns
        atoms = blocks.atoms.to(batch.device, non_blocking=batch.is_cuda)
        slot = atoms if blocks.in_order else blocks.slot.to(batch.device, non_blocking=batch.is_cuda)
        layout.append(PairBlocks(atoms, slot, blocks.num_blocks, blocks.block_size, blocks.in_order, None))
    return layout


def to_pair_blocks(x: Tensor, blocks: PairBlocks) -> Tensor:
    """(N, D) -> (B, b, D), empty slots zero."""
    if not blocks.in_order:
        x = put_rows(take(x, 0, blocks.atoms), blocks.slot, blocks.num_blocks * blocks.block_size)
    return x.reshape(blocks.num_blocks, blocks.block_size, x.shape[1])


def from_pair_blocks(found: List[Tensor], layout: List[PairBlocks], num_atoms: int) -> Tensor:
    """One (B b, D) for each layout -> (N, D), zero for atoms in none of them."""
    if layout[0].in_order:
        return found[0]
    rows = torch.cat([take(found[i], 0, layout[i].slot) for i in range(len(found))], dim=0)
    atoms = torch.cat([blocks.atoms for blocks in layout], dim=0)
    return put_rows(rows, atoms, num_atoms)
