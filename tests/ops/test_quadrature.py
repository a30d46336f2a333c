"""Attention by quadrature against the sum over pairs: on the same grid, and in closed form on a fine one."""

import pytest
import torch
from scipy.special import spherical_jn

from efa_addons.ops.backends import backend
from efa_addons.ops.graphs import graph_blocks
from efa_addons.ops.grid import make_grid
from efa_addons.ops.harmonics import spherical_harmonics
from efa_addons.ops.lebedev import lebedev_grid
from efa_addons.ops.naive import attend_pairs
from efa_addons.ops.quadrature import attend

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


def run(grid, q, k, v, atoms):
    return attend(q, k, v, atoms.positions, torch.tensor(FREQUENCIES), grid, graph_blocks(atoms.batch, atoms.num_graphs))


def one_grid(lebedev_num, constants=(1.0,)):
    return make_grid([(lebedev_num, len(FREQUENCIES))], constants)


@pytest.fixture(params=["parts", "small parts", "plain"])
def form(request, monkeypatch):
    """How the sums are carried out: part by part, in parts of a few atoms and directions, and by torch's operations."""
    if request.param == "small parts":
        monkeypatch.setenv("EFA_ADDONS_CHUNK_MB", "0.02")
    with backend("plain" if request.param == "plain" else "chunked"):
        yield request.param


@pytest.mark.parametrize("lebedev_num", [6, 50, 74])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_linear_cost_form_is_the_sum_over_pairs_on_any_grid(atoms, sizes, lebedev_num, form):
    structure = atoms(*sizes)
    q, k, v = random_qkv(len(structure.batch))
    fast = run(one_grid(lebedev_num), q, k, v, structure)[:, 0]
    points = [torch.as_tensor(part) for part in lebedev_grid(lebedev_num)]
    naive = attend_pairs(q, k, v, structure.positions, torch.tensor(FREQUENCIES), *points, structure.batch)
    assert (fast - naive).abs().max() < 1e-12 * naive.abs().max()


def test_every_group_of_frequencies_has_its_own_grid(atoms, form):
    structure = atoms(3, 1, 4)
    q, k, v = random_qkv(8)
    fast = run(make_grid([(1, 1), (14, 1), (38, 1)], [1.0]), q, k, v, structure)[:, 0]
    parts = []
    for channel, lebedev_num in enumerate((6, 14, 38)):  # of a frequency of zero all grids make the same
        points = [torch.as_tensor(part) for part in lebedev_grid(lebedev_num)]
        mine = slice(2 * channel, 2 * channel + 2)
        frequency = torch.tensor(FREQUENCIES)[channel : channel + 1]
        parts.append(attend_pairs(q[..., mine], k[..., mine], v, structure.positions, frequency, *points, structure.batch))
    assert (fast - sum(parts)).abs().max() < 1e-12 * fast.abs().max()


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_scalar_kernel_is_sinc(atoms, sizes):
    structure = atoms(*sizes)
    q, k, v = random_qkv(len(structure.batch))
    fast = run(one_grid(974), q, k, v, structure)[:, 0]
    exact = closed_form(q, k, v, structure.positions, structure.batch, 0)[:, 0]
    assert (fast - exact).abs().max() < 1e-10


@pytest.mark.parametrize("groups", [[(974, 3)], [(1, 1), (770, 1), (974, 1)]], ids=["one grid", "three grids"])
@pytest.mark.parametrize("degree", range(4))
def test_harmonics_under_the_integral_give_spherical_bessel_functions(atoms, degree, groups, form):
    structure = atoms(4, 1, 3)
    q, k, v = random_qkv(8)
    constants = [0.5, 2.0, -1.0, 3.0][: degree + 1]
    fast = run(make_grid(groups, constants), q, k, v, structure)[:, degree**2 :]
    exact = constants[degree] * closed_form(q, k, v, structure.positions, structure.batch, degree)
    assert exact.abs().max() > 0.1
    assert (fast - exact).abs().max() < 1e-10


def test_degree_zero_of_the_harmonics_is_plain_attention(atoms, form):
    structure = atoms(4, 2)
    q, k, v = random_qkv(6)
    plain = run(one_grid(26), q, k, v, structure)
    harmonics = run(one_grid(26, [1.0, 1.0, 1.0]), q, k, v, structure)
    assert (harmonics[:, :1] - plain).abs().max() < 1e-13


def test_atom_attends_to_itself_with_degree_zero_only(atoms, form):
    structure = atoms(1)
    q, k, v = random_qkv(1)
    z = run(one_grid(26, [1.0, 1.0, 1.0]), q, k, v, structure)
    assert (z[0, 0] - (q * k).sum() * v[0]).abs().max() < 1e-13
    assert z[0, 1:].abs().max() < 1e-13
