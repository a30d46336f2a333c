"""The weights of pairs are those of the sum: with them and the values, the attention's output comes out again."""

import pytest
import torch
from scipy.special import spherical_jn

from efa_addons import EuclideanFastAttention
from efa_addons.nn.kernels import pair_kernels
from efa_addons.ops.harmonics import spherical_harmonics

pytestmark = pytest.mark.usefixtures("double")


def output_from(module, x, positions, weights):
    """Σ_n' W_l(n, n') Y_lm v_n', coupled where there is tensor integration."""
    directions = positions[:, None] - positions
    degrees = module.max_degree_sph
    harmonics = spherical_harmonics(degrees, directions).nan_to_num()  # no direction, no weight: the self term, l > 0
    harmonics[..., 0] = 1
    _, _, values = module.project(x)
    per_component = torch.as_tensor(weights).repeat_interleave(2 * torch.arange(degrees + 1) + 1, dim=0)
    z = torch.einsum("anm,nma,mkf->nakf", per_component, harmonics, values)
    return (module.couple(z) if module.tensor_integration else z.squeeze(1)).unflatten(1, module.output_shape)


@pytest.mark.parametrize("normalization", [1.0, 7.0])
def test_the_attention_is_the_sum_of_its_weights(options, randomized, atoms, normalization):
    options = {**options, "normalization": normalization, "max_length": 3.0, "method": "pairwise"}
    module = randomized(EuclideanFastAttention(**options))
    positions, batch, num_graphs = atoms(7, 1, 5)
    x = torch.randn(13, *module.input_shape)
    with torch.no_grad():
        expected = module(x, positions, batch, num_graphs)
        kernels = pair_kernels(module, x, positions, batch)
        found = output_from(module, x, positions, kernels.weights)
    assert kernels.weights.shape == (module.max_degree_sph + 1, 13, 13)
    assert expected.abs().max() > 1e-2
    assert (found - expected).abs().max() < 1e-10 * max(1.0, expected.abs().max())


def test_couplings_times_bessel_functions_are_the_weights(randomized, atoms):
    """Trained frequencies, one of them negative, as they may become."""
    module = randomized(
        EuclideanFastAttention(6, 1, max_length=4.0, tensor_integration=True, ti_max_degree_sph=3, frequencies_trainable=True)
    )
    with torch.no_grad():
        module.frequencies[1] *= -1
    positions = atoms(8).positions
    x = torch.randn(8, *module.input_shape)
    with torch.no_grad():
        kernels = pair_kernels(module, x, positions)
        module.pairwise_up_to = 100
        assert (output_from(module, x, positions, kernels.weights) - module(x, positions)).abs().max() < 1e-10
    for degree in range(4):
        shapes = spherical_jn(degree, module.frequencies.detach().numpy()[:, None, None] * kernels.distances)
        assert abs((kernels.couplings[degree] * shapes).sum(0) - kernels.weights[degree]).max() < 1e-12


def test_features_that_are_differentiated_and_none_at_all():
    module = EuclideanFastAttention(4, max_length=4.0, parametrized=False)
    for num_atoms in (3, 0):
        kernels = pair_kernels(
            module, torch.randn(num_atoms, *module.input_shape, requires_grad=True), torch.randn(num_atoms, 3)
        )
        assert kernels.couplings.shape == (1, 2, num_atoms, num_atoms)


def test_without_itself_an_atom_gets_no_weight_from_itself(randomized, atoms):
    positions = atoms(5).positions
    for include_self in (True, False):
        module = randomized(EuclideanFastAttention(4, max_length=4.0, include_self=include_self))
        weights = pair_kernels(module, torch.randn(5, 1, 1, 4), positions).weights[0]
        assert (weights.diagonal() != 0).all() == include_self and weights[0, 1] != 0


def test_single_precision_is_enough(randomized, atoms):
    module = randomized(EuclideanFastAttention(8, 1, max_length=6.0, activation="gelu"))
    positions, x = atoms(9).positions, torch.randn(9, 1, 4, 8)
    exact = pair_kernels(module, x, positions).weights
    rounded = pair_kernels(module.float(), x.float(), positions).weights
    assert 0 < abs(rounded - exact).max() < 1e-6 * abs(exact).max()
