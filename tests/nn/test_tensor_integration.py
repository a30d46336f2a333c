"""Coupling with spherical harmonics, path by path."""

import pytest
import torch

from efa_addons import EFAError
from efa_addons.nn.features import FeatureType
from efa_addons.nn.tensor_integration import TensorIntegration
from efa_addons.ops.clebsch_gordan import clebsch_gordan

VALUES = [FeatureType(0, False, 3), FeatureType(1, False, 3), FeatureType(1, True, 2)]


def blocks(kind):
    """{irrep: slice of its components}"""
    first, found = 0, {}
    for degree, parity in kind.irreps:
        found[degree, parity] = slice(first, first + 2 * degree + 1)
        first += 2 * degree + 1
    return found


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("parametrized", [False, True])
@pytest.mark.parametrize("source", VALUES, ids=str)
def test_sum_over_coupling_paths(source, parametrized):
    couple = TensorIntegration(2, source, 2, True, parametrized)
    z = torch.randn(4, 9, source.num_components, source.num_features)
    expected = torch.zeros(4, couple.target.num_components, source.num_features)
    inputs, outputs = blocks(source), blocks(couple.target)
    for i, (degree, irrep, out) in enumerate(couple.paths):
        part = z[:, degree**2 : (degree + 1) ** 2, inputs[irrep]]
        table = torch.as_tensor(clebsch_gordan(degree, irrep[0], out[0]))
        weight = couple.weight[i] if parametrized else 1.0
        expected[:, outputs[out]] += weight * torch.einsum("abc,nabf->ncf", table, part)
    assert (couple(z) - expected).abs().max() < 1e-12


def test_paths_obey_triangle_and_parity():
    couple = TensorIntegration(1, FeatureType(1, False, 2), 2, True)
    assert couple.paths == [
        (0, (0, 1), (0, 1)),
        (0, (1, -1), (1, -1)),
        (1, (0, 1), (1, -1)),
        (1, (1, -1), (0, 1)),
        (1, (1, -1), (1, 1)),
        (1, (1, -1), (2, 1)),
    ]


@pytest.mark.parametrize(("degree_sph", "source", "degree"), [(0, VALUES[1], 1), (2, VALUES[0], 2), (1, VALUES[1], 0)])
def test_no_pseudotensors_where_no_path_leads_to_one(degree_sph, source, degree):
    assert not TensorIntegration(degree_sph, source, degree, True).target.pseudotensors


def test_degree_out_of_reach():
    with pytest.raises(EFAError, match="ti_max_degree=4 cannot be reached: .* gives at most 3"):
        TensorIntegration(2, FeatureType(1, False, 2), 4, False)
