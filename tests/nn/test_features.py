"""Feature types and the linear map per irrep."""

import copy

import pytest
import torch

from efa_addons import EFABlock, EFAConfig, EFAError
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


@pytest.fixture(params=[{"method": "quadrature"}, {"method": "pairwise", "tensor_integration": True}], ids=["waves", "pairs"])
def build(request, double):
    """Blocks of the same weights, made in single or double precision."""
    states = []

    def made(dtype):
        torch.set_default_dtype(dtype)
        block = EFABlock("4x0e+3x1o", "4x0e+4x1o", EFAConfig(max_length=5.0, num_features_qk=6, **request.param))
        torch.set_default_dtype(torch.float64)
        states.append({name: torch.randn(value.shape).float().double() for name, value in block.state_dict().items()})
        block.load_state_dict(states[0])
        return block

    return made


def test_constants_are_exact_after_a_change_of_precision(build):
    """Once rounded, another double precision would be another function."""
    x, positions, batch = torch.randn(5, 13), torch.randn(5, 3), torch.tensor([0, 0, 0, 1, 1])
    expected = build(torch.float64)(x, positions, batch, 2)
    for changed in (build(torch.float32).double(), build(torch.float64).float().double(), build(torch.float64).half().double()):
        changed.load_state_dict(build(torch.float64).state_dict())
        assert torch.equal(changed(x, positions, batch, 2), expected)


def test_constants_survive_a_device_without_memory(build):
    """The way of large models: everything is empty, and weights are loaded."""
    x, positions = torch.randn(5, 13), torch.randn(5, 3)
    block = build(torch.float64)
    for emptied in (copy.deepcopy(block).to("meta").to_empty(device="cpu"), copy.deepcopy(block).to_empty(device="cpu")):
        emptied.load_state_dict(block.state_dict())
        assert torch.equal(emptied(x, positions), block(x, positions))


def test_constants_stay_where_they_are_shared(build):
    block = build(torch.float64)
    index = block.pack.index
    block.share_memory()
    assert block.pack.index is index and index.is_shared()
    assert block.to(torch.float64).pack.index is index and index._version == 0  # nothing was done to it
