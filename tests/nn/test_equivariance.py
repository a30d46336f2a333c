"""Equivariance under rotations and reflections: kept where the grid is fine enough, and lost where it is not."""

import math

import pytest
import torch
from e3nn import o3

from efa_addons import EFAWarning, EuclideanFastAttention

pytestmark = pytest.mark.usefixtures("double")

TI = {"tensor_integration": True}
WEIGHTED = {**TI, "ti_parametrize_coupling_paths": True}
CASES = {
    "scalars": {"num_features": 4},
    "vectors": {"num_features": 4, "max_degree": 1, "activation": "silu"},
    "degree 2": {"num_features": 2, "max_degree": 2, "max_degree_qk": 1},
    "pseudotensors": {"num_features": 2, "max_degree": 2, "include_pseudotensors": True, "activation": "gelu"},
    "without self": {"num_features": 4, "max_degree": 1, "include_self": False},
    "TI from scalars": {"num_features": 4, **WEIGHTED, "ti_max_degree_sph": 2, "ti_max_degree": 2},
    "TI": {"num_features": 4, "max_degree": 1, **TI, "ti_max_degree": 2},
    "TI to pseudotensors": {"num_features": 2, "max_degree": 1, **WEIGHTED, "ti_include_pseudotensors": True},
    "TI of pseudotensors": {
        "num_features": 2, "max_degree": 1, "include_pseudotensors": True, **WEIGHTED, "ti_max_degree_sph": 2,
        "ti_max_degree": 3, "ti_degree_scaling_constants": (1.0, -0.5, 2.0),
    },
}  # fmt: skip
ROTATIONS = {"rotation": 1.0, "rotation with inversion": -1.0}


@pytest.fixture(params=list(CASES))
def case(request):
    return CASES[request.param]


def turned(x, kind, rotation):
    """Features (N, P, (L+1)^2, F) of type `kind` in the turned frame."""
    matrix = o3.Irreps(str(kind._replace(num_features=1))).D_from_matrix(rotation)
    return torch.einsum("ij,njf->nif", matrix, x.flatten(1, 2)).view_as(x)


def error(module, structure, rotation, turn_features=True, turn_positions=True):
    """Largest deviation from equivariance, relative to the largest output."""
    positions, batch, num_graphs = structure
    x = torch.randn(len(batch), *module.input_shape)
    expected = turned(module(x, positions, batch, num_graphs), module.output_type, rotation)
    x = turned(x, module.input_type, rotation) if turn_features else x
    got = module(x, positions @ rotation.T if turn_positions else positions, batch, num_graphs)
    return ((got - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("parity", ROTATIONS.values(), ids=list(ROTATIONS))
@pytest.mark.parametrize(("grid", "bound"), [({"tolerance": 1e-6}, 1e-5), ({"lebedev_num": 302}, 1e-10)], ids=str)
def test_equivariant_up_to_max_length(case, atoms, randomized, grid, bound, parity):
    module = randomized(EuclideanFastAttention(**case, max_length=4.0, method="quadrature", **grid))
    assert error(module, atoms(5, 1, 4, diameter=4.0), parity * o3.rand_matrix()) < bound


@pytest.mark.parametrize(
    ("name", "forgotten"),
    [(name, "turn_features") for name, case in CASES.items() if case.get("max_degree")]
    + [(name, "turn_positions") for name, case in CASES.items() if case.get("tensor_integration")],
)
def test_the_check_notices_what_is_not_turned(name, forgotten, atoms, randomized):
    module = randomized(EuclideanFastAttention(**CASES[name], max_length=4.0, lebedev_num=302))
    assert error(module, atoms(6), o3.rand_matrix(), **{forgotten: False}) > 1e-2


@pytest.mark.parametrize("too_far", [{"max_frequency": 4 * math.pi}, {"lebedev_num": 6}], ids=["frequency", "grid"])
def test_not_equivariant_beyond_the_grid(case, atoms, randomized, too_far):
    module = randomized(EuclideanFastAttention(**case, max_length=4.0, **{"lebedev_num": 26, **too_far}))
    assert error(module, atoms(8), o3.rand_matrix()) > 1e-3


def test_not_equivariant_beyond_max_length(case, atoms, randomized):
    module = randomized(EuclideanFastAttention(**case, max_length=4.0, tolerance=1e-5, method="quadrature"))
    with pytest.warns(EFAWarning, match="rotational invariance is no longer promised"):
        assert error(module, atoms(8, diameter=24.0), o3.rand_matrix()) > 1e-3


def test_pairs_are_equivariant_at_any_distance(case, atoms, randomized):
    module = randomized(EuclideanFastAttention(**case, max_length=4.0, max_frequency=5.0, method="pairwise"))
    assert error(module, atoms(8, 1, 5, diameter=40.0), -o3.rand_matrix()) < 1e-12


def test_inversion_alone_is_exact_on_any_grid(case, atoms, randomized):
    """Grids are symmetric under inversion; parity never depends on the number of points."""
    module = randomized(EuclideanFastAttention(**case, max_length=4.0, lebedev_num=6))
    assert error(module, atoms(5, 3), -torch.eye(3)) < 1e-12
