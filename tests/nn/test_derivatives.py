"""First and second derivatives: numerically right, finite for atoms alone or at the same place, reaching every parameter."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

from efa_addons import EFABlock, EFAConfig, EuclideanFastAttention
from efa_addons.ops.backends import backend

pytestmark = pytest.mark.usefixtures("double")

SMALL = {
    "scalars": {"num_features": 2, "activation": "silu"},
    "vectors": {"num_features": 2, "max_degree": 1, "num_features_v": 1, "include_self": False},
    "tensor integration": {
        "num_features": 2, "num_features_v": 1, "frequencies_trainable": True, "tensor_integration": True,
        "ti_max_degree_sph": 1, "ti_max_degree": 1, "ti_parametrize_coupling_paths": True,
    },
}  # fmt: skip
FORMS = [{"lebedev_num": 14}, {"method": "pairwise"}]
COINCIDENT = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.5, -1.0, 0.7]], dtype=torch.float64)


@pytest.mark.parametrize("positions", [torch.eye(3, dtype=torch.float64), COINCIDENT], ids=["apart", "coincident"])
@pytest.mark.parametrize("options", SMALL.values(), ids=list(SMALL))
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_derivatives_are_numerically_right(options, form, positions, randomized):
    module = randomized(EuclideanFastAttention(**options, **form, max_length=5.0, tolerance=0.1))
    names = [name for name, _ in module.named_parameters() if name.endswith(("bias", "frequencies", "couple.weight"))]
    parameters = [dict(module.named_parameters())[name].detach() for name in names]

    def function(x, positions, *values):
        return functional_call(module, dict(zip(names, values, strict=True)), (x, positions, torch.tensor([1, 1, 1]), 2))

    arguments = [torch.randn(3, *module.input_shape), positions.clone(), *parameters]
    for argument in arguments:
        argument.requires_grad_()
    assert gradcheck(function, arguments)
    assert gradgradcheck(function, arguments)


@pytest.mark.parametrize("sizes", [(0,), (1,), (1, 0, 3), (2, 2)], ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_derivatives_are_finite_for_lonely_and_coincident_atoms(options, form, atoms, randomized, sizes):
    module = randomized(EuclideanFastAttention(**options, **form, max_length=5.0))
    _, batch, num_graphs = atoms(*sizes)
    positions = torch.ones(len(batch), 3, requires_grad=True)
    x = torch.randn(len(batch), *module.input_shape, requires_grad=True)
    (forces,) = torch.autograd.grad(module(x, positions, batch, num_graphs).square().sum(), positions, create_graph=True)
    (forces - 1).square().sum().backward()
    values = [forces, positions.grad, x.grad, *(p.grad for p in module.parameters())]
    assert all(value.isfinite().all() for value in values if value is not None)


def silent(module):
    """Names of parameters, matrix by matrix where they are stacked per irrep, that get no gradient."""
    names = []
    for name, parameter in module.named_parameters():
        parts = parameter.grad.unbind() if parameter.dim() == 3 else [parameter.grad]
        names += [f"{name}[{i}]" for i, part in enumerate(parts) if not part.abs().max() > 0]
    return names


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_every_parameter_of_the_attention_learns(options, form, atoms, randomized):
    module = randomized(EuclideanFastAttention(**options, **form, max_length=5.0, frequencies_trainable=True))
    out = module(torch.randn(7, *module.input_shape), *atoms(4, 3))
    (out * torch.randn_like(out)).sum().backward()
    assert silent(module) == []


BLOCKS = {
    "default": {},
    "trained frequencies": {"frequencies_trainable": True, "max_degree_qk": None},
    "tensor integration": {"tensor_integration": True, "ti_parametrize_coupling_paths": True, "ti_max_degree_sph": 1},
    "to pseudotensors": {"tensor_integration": True, "ti_include_pseudotensors": True, "ti_max_degree_sph": 1},
    "no contraction": {"contraction": False},
    "emulate": {"emulate": True},
    "emulate without contraction": {"emulate": True, "contraction": False, "tensor_integration": True},
    "no bias": {"use_bias": False, "include_self": False, "activation": "silu"},
    "unparametrized": {"parametrized": False},
}


@pytest.mark.parametrize("irreps", ["4x0e+4x1o", "4x0e+4x1o+4x2e", "4x0e+4x0o+4x1o+4x1e"])
@pytest.mark.parametrize("changes", BLOCKS.values(), ids=list(BLOCKS))
def test_every_parameter_of_the_block_learns(changes, irreps, atoms, randomized):
    settings = {"max_length": 5.0, "num_features_qk": 4, "num_features_v": 3, "mlp_features": 5, "lebedev_num": 26}
    block = randomized(EFABlock(irreps, irreps, EFAConfig(**{**settings, **changes})))
    out = block(torch.randn(7, block.pack.dim), *atoms(4, 3))
    (out * torch.randn_like(out)).sum().backward()
    assert silent(block) == []


@pytest.mark.parametrize("method", ["auto", "quadrature"])
@pytest.mark.parametrize("options", SMALL.values(), ids=list(SMALL))
def test_transforms_of_torch_func(options, method, atoms, randomized):
    """Forces, Hessians, derivatives along a direction, many structures at once; vectorized ones of autograd by "plain"."""
    module = randomized(EuclideanFastAttention(**options, method=method, max_length=5.0, tolerance=0.1))
    positions, batch, num_graphs = atoms(3, 2)
    x = torch.randn(5, *module.input_shape)

    def energy(positions):
        return module(x, positions, batch, num_graphs).square().sum()

    along = torch.randn(5, 3)
    with torch.no_grad():
        gradient = torch.func.grad(energy)(positions)
        both = torch.vmap(torch.func.grad(energy))(torch.stack([positions, positions + along]))
        by_jvp = torch.func.jvp(energy, (positions,), (along,))[1]
        hessian = torch.func.hessian(energy)(positions)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(positions, along)
        by_dual = torch.autograd.forward_ad.unpack_dual(energy(dual)).tangent
    with backend("plain"):
        vectorized = torch.autograd.functional.hessian(energy, positions, vectorize=True)
    expected = torch.autograd.functional.jacobian(energy, positions)
    close = {"rtol": 1e-9, "atol": 1e-9}
    assert torch.allclose(gradient, expected, **close) and torch.allclose(both[0], expected, **close)
    assert torch.allclose(both[1], torch.autograd.functional.jacobian(energy, positions + along), **close)
    assert all(torch.allclose(value, (expected * along).sum(), **close) for value in (by_jvp, by_dual))
    for found in (hessian, vectorized):
        assert torch.allclose(found, torch.autograd.functional.hessian(energy, positions), **close)
