"""Sums of rows: both ways give the same, up to second derivatives."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from efa_addons import EFABlock, EFAConfig, EFAError
from efa_addons.ops import scatter
from efa_addons.ops.scatter import sum_rows

needs_torch_scatter = pytest.mark.skipif(find_spec("torch_scatter") is None, reason="torch_scatter is not installed")


@pytest.mark.parametrize("chosen", [False, pytest.param(True, marks=needs_torch_scatter)])
def test_against_a_loop_and_finite_differences(double, monkeypatch, chosen):
    monkeypatch.setattr(scatter, "use_torch_scatter", chosen)
    x, index = torch.randn(7, 2, 3, requires_grad=True), torch.tensor([0, 3, 3, 1, 0, 3, 1])
    expected = torch.stack([sum((x[i] for i in range(7) if index[i] == row), torch.zeros(2, 3)) for row in range(5)])
    assert torch.allclose(sum_rows(x, index, 5), expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: sum_rows(x.sin(), index, 5), [x])
    assert torch.autograd.gradgradcheck(lambda x: sum_rows(x.sin(), index, 5), [x])


@needs_torch_scatter
def test_a_force_loss_is_the_same_with_torch_scatter(atoms, randomized, double, monkeypatch):
    """Sizes that differ, so that graphs take several blocks each."""
    block = randomized(EFABlock("8x0e+4x1o", "8x0e", EFAConfig(max_length=5.0, method="quadrature")))
    positions, batch, num_graphs = atoms(40, 1, 1, 1, 1, 1, 1)
    x, gradients = torch.randn(len(batch), 20), []
    for chosen in (False, True):
        monkeypatch.setattr(scatter, "use_torch_scatter", chosen)
        points = positions.clone().requires_grad_()
        energy = block(x, points, batch, num_graphs).square().sum()
        (forces,) = torch.autograd.grad(energy, [points], create_graph=True)
        gradients.append(torch.autograd.grad(energy + forces.square().sum(), list(block.parameters())))
    for plain, scattered in zip(*gradients, strict=True):
        assert torch.allclose(plain, scattered, rtol=1e-10, atol=1e-10)


def test_traces_do_without(monkeypatch):
    monkeypatch.setattr(scatter, "use_torch_scatter", True)
    traced = torch.compile(lambda x: sum_rows(x, torch.tensor([1, 1]), 2), backend="eager", fullgraph=True)
    assert torch.equal(traced(torch.ones(2, 3)), torch.tensor([[0.0] * 3, [2.0] * 3]))


@pytest.mark.skipif(find_spec("torch_scatter") is not None, reason="torch_scatter is installed")
def test_missing_package(monkeypatch):
    monkeypatch.setattr(scatter, "use_torch_scatter", True)
    with pytest.raises(EFAError, match="asks for torch_scatter, which cannot be imported"):
        sum_rows(torch.ones(2, 3), torch.tensor([0, 0]), 1)
