"""Predicted memory against what torch's profiler saw being allocated."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_counts import Traffic, _kernels_counted
from efa_addons import EFABlock, EFAConfig, memory
from efa_addons.memory import PeakMemory, predict_memory
from efa_addons.ops import graphs, pairwise


@pytest.fixture
def blocks():
    config = EFAConfig(max_length=12.0, num_features_qk=8, num_features_v=8)
    return [EFABlock("8x0e", "8x0e+8x1o", config), EFABlock("8x0e+8x1o", "8x0e", config)]


def allocated(step) -> int:
    """Peak of the bytes that torch's own profiler reports."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("atoms_per_graph", "num_graphs"), [(20, 6), (150, 1), (20, 700), (12000, 1), (6000, 2)])
def test_prediction_is_within_a_fifth_of_what_is_allocated(blocks, training, atoms_per_graph, num_graphs):
    predicted = predict_memory(blocks, atoms_per_graph, num_graphs, training)
    positions = (4 * torch.randn(atoms_per_graph * num_graphs, 3)).requires_grad_()
    batch = torch.arange(num_graphs).repeat_interleave(atoms_per_graph)

    def step() -> None:
        energy = torch.zeros(())
        for block in blocks:
            x = torch.randn(len(positions), block.pack.dim, requires_grad=True)
            energy = energy + block(x, 0.1 * positions, batch, num_graphs).pow(2).sum()
        (forces,) = torch.autograd.grad(energy, positions, create_graph=training)
        if training:
            (energy + forces.pow(2).sum()).backward()

    assert predicted == pytest.approx(allocated(step), rel=0.2)


@pytest.mark.parametrize("training", [True, False])
def test_emulated_blocks_which_see_no_positions(training):
    block = EFABlock("8x0e+8x1o", "8x0e", EFAConfig(max_length=12.0, emulate=True))
    assert predict_memory([block], 10, 2, training) > 0


def test_a_large_structure_needs_memory_of_its_atoms_a_state_and_a_part(monkeypatch):
    """No rotated features of all atoms: 25 directions alone would make 800 numbers of each atom."""
    settings = {"num_features_qk": 16, "num_features_v": 8, "mlp_features": 4, "lebedev_num": 50}
    block = EFABlock("8x0e", "8x0e", EFAConfig(max_length=12.0, **settings))
    sizes = []
    for megabytes in ("8", "64"):
        monkeypatch.setenv("EFA_ADDONS_CHUNK_MB", megabytes)
        sizes.append([predict_memory([block], atoms, 1) for atoms in (20000, 40000)])
    (small, double), (large_parts, _) = sizes
    assert (double - small) / 20000 < 4 * 500
    assert 0.6 < (large_parts - small) / (56 * 2**20) < 1.2


def test_nothing_is_left_behind(blocks):
    predict_memory(blocks, 10, 2)
    assert all(parameter.grad is None for block in blocks for parameter in block.parameters())


def test_peak_counts_what_is_alive_and_views_once():
    with PeakMemory() as found:
        a = torch.zeros(1000)
        b = a.view(10, 100)  # no memory of its own
        del a, b
        torch.zeros(500)
    assert found.peak == 4000


@pytest.mark.parametrize(("atoms_per_graph", "num_graphs"), [(300, 1), (200, 2), (30, 10)])
@pytest.mark.parametrize("waited_for", [False, True])
def test_pairs_are_counted_as_pairs(monkeypatch, atoms_per_graph, num_graphs, waited_for):
    """Where no more than 128 atoms are run. On a GPU, too, pairs are those of atoms of the same graph."""
    block = EFABlock("8x0e+8x1o", "8x0e", EFAConfig(max_length=12.0, num_features_qk=8, method="pairwise"))
    monkeypatch.setattr(pairwise, "_KEEP", 0)
    needed = predict_memory([block], atoms_per_graph, num_graphs)
    if waited_for:
        monkeypatch.setattr(graphs, "_static_shapes", lambda batch: True)
        monkeypatch.setattr(memory, "_is_on_cpu", lambda block: False)
    monkeypatch.setattr(memory, "_ATOMS", 256)
    assert predict_memory([block], atoms_per_graph, num_graphs) == pytest.approx(needed, rel=0.1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("atoms_per_graph", "num_graphs"), [(150_000, 1), (300_000, 1), (3000, 50)])
def test_where_kernels_serve(training, atoms_per_graph, num_graphs):
    """Without running so much: their sums are cut into more and more shares. Against the batch on a device without memory."""
    pytest.importorskip("triton", "3.4", reason="needs triton")
    blocks = [EFABlock("16x0e", "16x0e", EFAConfig(max_length=12.0, method="quadrature")).to("meta")]
    with _kernels_counted(Traffic()):
        with PeakMemory() as found:
            memory._run(blocks, atoms_per_graph, num_graphs, training)
        assert predict_memory(blocks, atoms_per_graph, num_graphs, training) == pytest.approx(found.peak, rel=0.02)


def test_frozen_blocks(blocks):
    frozen = [block.requires_grad_(False) for block in blocks]
    assert predict_memory(frozen, 10, 2) > 0
