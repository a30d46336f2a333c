"""Feature types and the linear map per irrep."""

import pytest
import torch

from efa_addons import EFAError
from efa_addons.nn.features import Dense, FeatureType, Select, components_of


@pytest.mark.parametrize(
    ("kind", "irreps", "num_components"),
    [
        (FeatureType(0, False, 4), "4x0e", 1),
        (FeatureType(2, False, 3), "3x0e+3x1o+3x2e", 9),
        (FeatureType(1, True, 2), "2x0e+2x1e+2x0o+2x1o", 8),
    ],
)
def test_types(kind, irreps, num_components):
    assert str(kind) == irreps
    assert kind.num_components == len(kind.components) == num_components
    assert kind.dim == num_components * kind.num_features


@pytest.mark.parametrize("irreps", [None, [(1, -1), (0, 1)]], ids=["all", "some"])
def test_dense_multiplies_each_irrep_by_its_own_matrix(irreps):
    source = FeatureType(1, True, 3)
    dense = Dense(source.irreps, 3, 4, irreps)
    torch.nn.init.normal_(dense.bias)
    x, place = torch.randn(5, source.num_components, 3), source.components
    for column, component in enumerate(components_of(dense.irreps)):
        expected = x[:, place.index(component)] @ dense.weight[dense.irreps.index(component[:2])]
        if component[:2] == (0, 1):
            expected = expected + dense.bias
        assert torch.allclose(dense(x)[:, column], expected, atol=1e-6)


@pytest.mark.parametrize(("irreps", "bias"), [([(0, 1)], False), ([(0, -1), (1, 1)], True)])
def test_bias_only_where_wanted_and_on_true_scalars(irreps, bias):
    assert Dense(FeatureType(1, True, 3).irreps, 3, 4, irreps, bias).bias is None


def test_dense_of_missing_irreps():
    with pytest.raises(EFAError, match=r"irreps \[\(2, 1\)\] \(degree, parity\) are not in the input"):
        Dense([(0, 1), (1, -1)], 3, 4, [(0, 1), (2, 1)])


def test_select_reorders_drops_and_fills():
    source, target = components_of([(0, 1), (1, -1)]), components_of([(1, -1), (0, -1)])
    x = torch.randn(2, 4, 3)
    assert torch.equal(Select(source, target)(x), torch.cat([x[:, 1:], torch.zeros(2, 1, 3)], dim=1))
    assert Select(source, source)(x) is x
