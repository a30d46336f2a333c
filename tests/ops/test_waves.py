"""The sums part by part against torch's operations: values, first and second derivatives by everything, in any parts."""

import pytest
import torch
from torch.autograd import gradgradcheck

from efa_addons import EFAError
from efa_addons.ops import waves
from efa_addons.ops.backends import backend
from efa_addons.ops.graphs import graph_blocks
from efa_addons.ops.grid import make_grid
from efa_addons.ops.parts import chunk_bytes
from efa_addons.ops.quadrature import attend
from efa_addons.ops.waves import second_partials

pytestmark = pytest.mark.usefixtures("double")

FREQUENCIES = (0.0, 0.5, 0.7, 1.9)
GROUPS = [(1, 1), (14, 2), (26, 1)]
MEGABYTES = {"one part": "100", "parts": "0.1", "single atoms and directions": "1e-4"}


def arguments(atoms, dtype=torch.float64):
    num_atoms = len(atoms.batch)
    shapes = [(num_atoms, 4, 8), (num_atoms, 4, 8), (num_atoms, 3, 2)]
    tensors = [*(torch.randn(shape) for shape in shapes), atoms.positions, torch.tensor(FREQUENCIES)]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def attention(tensors, atoms, constants):
    return attend(*tensors, make_grid(GROUPS, constants), graph_blocks(atoms.batch, atoms.num_graphs))


def derivatives(tensors, atoms, constants):
    """Output, gradients of a loss that is not linear in it, and gradients of these along random directions."""
    out = attention(tensors, atoms, constants)
    first = torch.autograd.grad((out * (1 + out)).sum(), tensors, create_graph=True)
    torch.manual_seed(1)
    second = torch.autograd.grad(sum((g * torch.randn_like(g)).sum() for g in first), tensors)
    return [out, *first, *second]


@pytest.mark.parametrize("constants", [[1.0], [1.0, 0.5], [1.0, 0.5, -2.0]], ids=["scalars", "degree 1", "degree 2"])
@pytest.mark.parametrize("sizes", [(7,), (0,), (5, 1, 0, 4), (1, 1, 1, 12, 1, 1)], ids=str)
@pytest.mark.parametrize("megabytes", MEGABYTES.values(), ids=list(MEGABYTES))
def test_two_derivatives(atoms, sizes, constants, megabytes, monkeypatch):
    structure = atoms(*sizes)
    tensors = arguments(structure)
    with backend("plain"):
        expected = derivatives(tensors, structure, constants)
    monkeypatch.setenv("EFA_ADDONS_CHUNK_MB", megabytes)
    for value, reference in zip(derivatives(tensors, structure, constants), expected, strict=True):
        assert (value - reference).norm() <= 1e-12 * reference.norm()


@pytest.mark.parametrize("asked", ["q", "k", "v", "positions", "frequencies", "q and positions"])
@pytest.mark.parametrize("constants", [[1.0], [1.0, 0.5, -2.0]], ids=["scalars", "degree 2"])
def test_derivatives_by_some_arguments_alone(atoms, constants, asked):
    """Sums for derivatives that nobody asks for are left out; the others must not notice."""
    structure = atoms(2, 1)
    names = ["q", "k", "v", "positions", "frequencies"]
    q, k, v, *others = arguments(structure)
    tensors = [part.detach() for part in (q[:, :1], k[:, :1], v[:, :1], *others)]
    for name, tensor in zip(names, tensors, strict=True):
        tensor.requires_grad_(name in asked.split(" and "))
    wanted = [tensor for tensor in tensors if tensor.requires_grad]

    def function(*changed):
        replaced = iter(changed)
        return attention([next(replaced) if t.requires_grad else t for t in tensors], structure, constants)

    assert torch.autograd.gradcheck(function, wanted)
    assert gradgradcheck(function, wanted)


def test_second_derivatives_by_fixed_frequencies_are_not_made(atoms, monkeypatch):
    asked = []

    def spy(*arguments):
        asked.append(tuple(arguments[-1]))
        return second_partials(*arguments)

    monkeypatch.setattr(waves, "second_partials", spy)
    tensors = arguments(atoms(3))
    tensors[4].requires_grad_(False)
    out = attention(tensors, atoms(3), [1.0])
    (forces,) = torch.autograd.grad(out.square().sum(), tensors[3], create_graph=True)
    torch.autograd.grad(forces.square().sum(), tensors[0])
    assert asked == 2 * [(True, True, True, False, True)]  # of the read-out and of the state


def test_third_derivatives_are_refused_and_plain_has_them(atoms):
    structure = atoms(3)
    tensors = arguments(structure)

    def third():
        value = attention(tensors, structure, [1.0]).sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(value, tensors[3], create_graph=True)
            value = gradient.square().sum()
        return value

    with pytest.raises(EFAError, match="third derivatives .* EFA_ADDONS_BACKEND=plain"):
        third()
    with backend("plain"):
        assert third().isfinite()


def test_size_of_parts(monkeypatch):
    assert chunk_bytes(torch.device("cpu")) < chunk_bytes(torch.device("cuda"))
    monkeypatch.setenv("EFA_ADDONS_CHUNK_MB", "0.5")
    assert chunk_bytes(torch.device("cuda")) == 2**19
    monkeypatch.setenv("EFA_ADDONS_CHUNK_MB", "")
    assert chunk_bytes(torch.device("cuda")) == 2**29
    for given in ("much", "inf", "nan", "-1"):
        monkeypatch.setenv("EFA_ADDONS_CHUNK_MB", given)
        with pytest.raises(EFAError, match=f"EFA_ADDONS_CHUNK_MB must be a positive number of megabytes, got '{given}'"):
            chunk_bytes(torch.device("cpu"))


def test_unknown_backend():
    with pytest.raises(EFAError, match="unknown backend 'tritn'"), backend("tritn"):
        pass
