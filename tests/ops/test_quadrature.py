"""Attention by quadrature against the sum over pairs: on the same grid, and in closed form on a fine one."""

import pytest
import torch
from scipy.special import spherical_jn

from efa_addons.ops.graphs import graph_blocks
from efa_addons.ops.harmonics import spherical_harmonics
from efa_addons.ops.lebedev import grid_tensors
from efa_addons.ops.naive import attend_pairs
from efa_addons.ops.quadrature import attend, attend_harmonics

pytestmark = pytest.mark.usefixtures("double")

FREQUENCIES = (0.0, 0.7, 1.9)
SIZES = [(5,), (1,), (3, 1, 4), (0, 2, 0, 3), (1, 1, 1, 12, 1, 1)]


def random_qkv(num_atoms):
    """q, k (N, 4, 6) and v (N, 3, 2)."""
    return torch.randn(num_atoms, 4, 6), torch.randn(num_atoms, 4, 6), torch.randn(num_atoms, 3, 2)


def closed_form(q, k, v, positions, batch, degree):
    """The integral over directions, done exactly, pair by pair: (N, 2l+1, K_v, F_v)."""
    qc, kc = torch.view_as_complex(q.unflatten(-1, (-1, 2))), torch.view_as_complex(k.unflatten(-1, (-1, 2)))
    product = torch.einsum("akc,bkc->abc", qc, kc.conj())
    part = product.real if degree % 2 == 0 else -product.imag
    between = positions[:, None] - positions
    phase = between.norm(dim=-1)[..., None] * torch.tensor(FREQUENCIES)
    bessel = (-1) ** (degree // 2) * torch.as_tensor(spherical_jn(degree, phase.numpy()))
    harmonics = spherical_harmonics(degree, between)[..., degree**2 :]
    same = (batch[:, None] == batch).double()
    return torch.einsum("ab,abc,abc,abm,bkf->amkf", same, part, bessel, harmonics, v)


def run(form, q, k, v, atoms, directions, weights):
    blocks = graph_blocks(atoms.batch, atoms.num_graphs)
    return form(q, k, v, atoms.positions, torch.tensor(FREQUENCIES), directions, weights, blocks)


@pytest.mark.parametrize("lebedev_num", [6, 50, 74])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_linear_cost_form_is_the_sum_over_pairs_on_any_grid(atoms, sizes, lebedev_num):
    structure = atoms(*sizes)
    q, k, v = random_qkv(len(structure.batch))
    directions, weights = grid_tensors(lebedev_num)
    fast = run(attend, q, k, v, structure, directions, weights)
    naive = attend_pairs(q, k, v, structure.positions, torch.tensor(FREQUENCIES), directions, weights, structure.batch)
    assert (fast - naive).abs().max() < 1e-12 * naive.abs().max()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scalar_kernel_is_sinc(atoms, sizes):
    structure = atoms(*sizes)
    q, k, v = random_qkv(len(structure.batch))
    fast = run(attend, q, k, v, structure, *grid_tensors(974))
    exact = closed_form(q, k, v, structure.positions, structure.batch, 0)[:, 0]
    assert (fast - exact).abs().max() < 1e-10


@pytest.mark.parametrize("degree", range(4))
def test_harmonics_under_the_integral_give_spherical_bessel_functions(atoms, degree):
    structure = atoms(4, 1, 3)
    q, k, v = random_qkv(8)
    directions, weights = grid_tensors(974)
    harmonics = weights[:, None] * spherical_harmonics(degree, directions)[:, degree**2 :]
    fast = run(attend_harmonics, q, k, v, structure, directions, harmonics)
    exact = closed_form(q, k, v, structure.positions, structure.batch, degree)
    assert exact.abs().max() > 0.1
    assert (fast - exact).abs().max() < 1e-10


def test_degree_zero_of_the_harmonics_is_plain_attention(atoms):
    structure = atoms(4, 2)
    q, k, v = random_qkv(6)
    directions, weights = grid_tensors(26)
    plain = run(attend, q, k, v, structure, directions, weights)
    harmonics = run(attend_harmonics, q, k, v, structure, directions, weights[:, None])
    assert (harmonics[:, 0] - plain).abs().max() < 1e-13


def test_atom_attends_to_itself_with_degree_zero_only(atoms):
    structure = atoms(1)
    q, k, v = random_qkv(1)
    directions, weights = grid_tensors(26)
    z = run(attend_harmonics, q, k, v, structure, directions, weights[:, None] * spherical_harmonics(2, directions))
    assert (z[0, 0] - (q * k).sum() * v[0]).abs().max() < 1e-13
    assert z[0, 1:].abs().max() < 1e-13
