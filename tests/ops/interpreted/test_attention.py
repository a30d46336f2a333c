"""Attention by the kernels against torch's operations in float64: values, first and second derivatives by everything."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from efa_addons.ops.backends import PRECISIONS, backend
from efa_addons.ops.graphs import graph_blocks
from efa_addons.ops.grid import make_grid
from efa_addons.ops.quadrature import attend

FREQUENCIES = (0.0, 0.5, 1.9)
GROUPS = [(1, 1), (14, 2)]


def arguments(structure, components=1):
    """q, k, v, positions and frequencies, float64."""
    n = len(structure.batch)
    shapes = [(n, components, 6), (n, components, 6), (n, 1, 3)]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [*tensors, structure.positions.double(), torch.tensor(FREQUENCIES, dtype=torch.float64)]


def attention(tensors, structure, constants):
    default = torch.get_default_dtype()
    torch.set_default_dtype(tensors[0].dtype)
    try:
        grid = make_grid(GROUPS, constants)
    finally:
        torch.set_default_dtype(default)
    return attend(*tensors, grid, graph_blocks(structure.batch, structure.num_graphs))


def derivatives(name, tensors, structure, constants, dtype):
    """Output, gradients of a loss that is not linear in it, and gradients of these along random directions."""
    tensors = [tensor.to(dtype).requires_grad_() for tensor in tensors]
    with backend(name):
        out = attention(tensors, structure, constants)
        first = torch.autograd.grad((out * (1 + out)).sum(), tensors, create_graph=True)
        torch.manual_seed(1)
        along = [torch.randn(g.shape, dtype=torch.float64).to(dtype) for g in first]
        second = torch.autograd.grad(sum((g * d).sum() for g, d in zip(first, along, strict=True)), tensors)
    return [out, *first, *second]


@pytest.mark.parametrize(
    ("sizes", "constants", "components"),
    [((19,), [1.0], 2), ((2, 0, 1), [1.0], 1), ((1,), [1.0], 1), ((0,), [1.0], 1), ((3,), [1.0, 0.5], 1)],
    ids=["one structure", "batch", "one atom", "no atom", "degree 1"],
)
def test_two_derivatives(atoms, sizes, constants, components):
    structure = atoms(*sizes)
    tensors = arguments(structure, components)
    expected = derivatives("plain", tensors, structure, constants, torch.float64)
    found = derivatives("triton", tensors, structure, constants, torch.float32)
    largest = max(reference.norm() for reference in expected)  # an atom alone has derivatives that vanish
    for value, reference in zip(found, expected, strict=True):
        assert value.dtype == torch.float32
        assert (value - reference).norm() <= 3e-6 * torch.maximum(reference.norm(), 0.1 * largest)


# The relative error that each makes at most, and at least: a switch that does nothing is seen as well.
ERRORS = {"tf32x3": (0.0, 1e-6), "ieee": (0.0, 1e-6), "tf32": (3e-5, 2e-3), "bf16": (3e-4, 2e-2)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(atoms, precision, monkeypatch):
    monkeypatch.setenv("EFA_ADDONS_PRECISION", precision)
    structure = atoms(24)
    tensors = arguments(structure)

    def run(name, dtype):
        here = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        with backend(name):
            out = attention(here, structure, [1.0])
            return out, torch.autograd.grad(out.square().sum(), here[3])[0]

    least, most = ERRORS[precision]
    for value, reference in zip(run("triton", torch.float32), run("plain", torch.float64), strict=True):
        assert least <= (value - reference).norm() / reference.norm() <= most


def test_in_a_trace_they_are_nodes(atoms, by_triton):
    structure = atoms(3, 2)
    tensors = [tensor.float() for tensor in arguments(structure)]
    traced = make_fx(lambda *t: attention(t, structure, [1.0]))(*tensors)
    names = [str(node.target) for node in traced.graph.nodes]
    assert "efa_addons.wave_state.default" in names and "efa_addons.wave_read_out.default" in names
    assert (traced(*tensors) - attention(tensors, structure, [1.0])).abs().max() < 1e-6
