"""The layout in blocks: every atom once, every graph its own sum, whatever the sizes."""

import random

import pytest
import torch

from efa_addons.ops import graphs
from efa_addons.ops.graphs import center_positions, for_blocks, from_blocks, graph_blocks, sum_over_graph, to_blocks

SIZES = [(0,), (1,), (7,), (3, 3, 3), (0, 5, 0), (1, 1, 1, 1, 30), (30, 1, 0, 2), (0, 0, 17, 16, 2), (2,) * 20 + (9, 40)]
draw = random.Random(0)
for _ in range(12):  # from all alike to one graph that dwarfs the others
    SIZES.append(tuple(min(int(draw.paretovariate(0.8)) - 1, 60) for _ in range(draw.randint(1, 12))))


@pytest.fixture(params=[False, True], ids=["exact", "static"])
def static(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(graphs, "_static_shapes", lambda batch: True)
    return request.param


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sums_over_graphs(atoms, static, sizes):
    batch, num_graphs = atoms(*sizes)[1:]
    x = torch.randn(len(batch), 3)
    blocks = graph_blocks(batch, num_graphs)
    per_block = to_blocks(x, blocks)
    expected = torch.zeros(num_graphs, 3).index_add(0, batch, x)[batch]
    in_every_block = for_blocks(sum_over_graph(per_block.sum(1, keepdim=True), blocks), blocks).expand_as(per_block)
    assert per_block.shape == (blocks.num_blocks, blocks.block_size, 3)
    assert torch.equal(from_blocks(per_block, blocks), x)
    assert torch.allclose(from_blocks(in_every_block, blocks), expected, atol=1e-5)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_slots(atoms, static, sizes):
    batch, num_graphs = atoms(*sizes)[1:]
    blocks = graph_blocks(batch, num_graphs)
    assert len(blocks.slot.unique()) == len(batch)
    assert torch.equal(blocks.graph[blocks.slot // blocks.block_size], batch)
    assert blocks.num_blocks * blocks.block_size <= 2 * len(batch) + 2 * num_graphs  # no more than half the slots wasted


def test_unequal_graphs_take_several_blocks_and_equal_ones_take_one(atoms):
    unequal, equal = atoms(1, 1, 1, 1, 30), atoms(7, 7, 6)
    assert not graph_blocks(unequal.batch, unequal.num_graphs).one_each
    assert graph_blocks(unequal.batch, unequal.num_graphs).num_blocks > unequal.num_graphs
    assert graph_blocks(equal.batch, equal.num_graphs).one_each


def test_positions_are_centred_in_their_own_precision(atoms):
    positions, batch, num_graphs = atoms(3, 0, 1, 4)
    far = positions.double() + torch.tensor([1e8, -1e8, 1e8])
    centred = center_positions(far, batch, num_graphs)
    expected = center_positions(positions, batch, num_graphs)
    assert centred.dtype == torch.float64
    assert (centred - expected).abs().max() < 1e-6
    assert torch.zeros(num_graphs, 3).index_add(0, batch, expected).abs().max() < 1e-5
