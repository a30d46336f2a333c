"""TorchScript (LAMMPS, MACE's deployment): same values and gradients, before and after a file, for any sizes."""

import io
import warnings

import pytest
import torch

from efa_addons import EFABlock, EFAConfig, EuclideanFastAttention
from efa_addons.nn.checks import refuse_periodic

pytestmark = pytest.mark.usefixtures("double")

BLOCKS = {
    "default": {},
    "trained frequencies": {"frequencies_trainable": True, "activation": "shifted_softplus", "max_degree_qk": None},
    "tensor integration": {"tensor_integration": True, "ti_parametrize_coupling_paths": True, "include_self": False},
    "auto": {"lebedev_num": None},
    "plain": {"contraction": False, "use_bias": False, "parametrized": False},
    "emulate": {"emulate": True},
}


def assert_scripted_equals_eager(module, shape, atoms):
    """Three calls of the scripted module, the later ones optimised by its profile of the first."""
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(module), file)
    file.seek(0)
    scripted = torch.jit.load(file)
    for sizes in ((4, 0, 3), (1, 17, 1, 1), (5,), (0,)):
        positions, batch, num_graphs = atoms(*sizes)
        x = torch.randn(len(batch), *shape, requires_grad=True)
        positions.requires_grad_()
        results = []
        for call in (module, scripted):
            out = call(x, positions, batch, num_graphs)
            gradients = torch.autograd.grad(out.square().sum(), [x, positions], allow_unused=True)
            results.append([out, *(torch.zeros(()) if gradient is None else gradient for gradient in gradients)])
        for eager, loaded in zip(*results, strict=True):
            assert torch.allclose(eager, loaded, rtol=1e-10, atol=1e-12)
    assert torch.allclose(scripted(x, positions), module(x, positions))


def test_attention(options, atoms, randomized):
    module = randomized(EuclideanFastAttention(**options, max_length=5.0, lebedev_num=14))
    assert_scripted_equals_eager(module, module.input_shape, atoms)


def test_pairwise(atoms, randomized):
    coupled = {"tensor_integration": True, "ti_max_degree_sph": 2, "ti_parametrize_coupling_paths": True}
    options = {"max_length": 5.0, "method": "pairwise", "include_self": False, "frequencies_trainable": True}
    module = randomized(EuclideanFastAttention(2, 1, **options, **coupled))
    assert_scripted_equals_eager(module, module.input_shape, atoms)


def test_mixed_methods(atoms, randomized):
    module = randomized(EuclideanFastAttention(4, 1, max_length=5.0, tolerance=0.1))
    module.pairwise_up_to = 4
    assert_scripted_equals_eager(module, module.input_shape, atoms)


@pytest.mark.parametrize("changes", BLOCKS.values(), ids=list(BLOCKS))
def test_block(changes, atoms, randomized):
    config = EFAConfig(max_length=5.0, num_features_qk=4, num_features_v=2, mlp_features=4, **{"lebedev_num": 14, **changes})
    block = randomized(EFABlock("4x0e+2x1o", "4x0e+4x1o", config))
    assert_scripted_equals_eager(block, (block.pack.dim,), atoms)


@pytest.mark.parametrize("frozen", [False, True])
def test_structures_beyond_max_length_are_one_warning(frozen):
    scripted = torch.jit.script(EuclideanFastAttention(2, max_length=5.0, method="quadrature").eval())
    module = torch.jit.freeze(scripted) if frozen else scripted
    x, batch = torch.randn(4, 1, 1, 2), torch.tensor([0, 0, 2, 2])
    near = torch.randn(4, 1).sign() * torch.tensor([[1.4, 1.4, 1.4]])  # 4.8 Å across
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x, near + 100 * batch.unsqueeze(1), batch, 3)
    with pytest.warns(
        UserWarning, match="wide or more, EFA was set up for max_length=5. A: it is computed, but rotational"
    ) as told:
        for _ in range(3):
            module(x, torch.arange(4)[:, None] * torch.tensor([[1.0, 2.0, 5.0]]), batch, 3)
    assert len(told) == 1


def test_errors_survive():
    module = torch.jit.script(EuclideanFastAttention(2, max_length=5.0, lebedev_num=14))
    with pytest.raises(torch.jit.Error, match="batch must hold graph numbers 0 to 0, got 0 to 1"):
        module(torch.randn(2, 1, 1, 2), torch.randn(2, 3), torch.tensor([0, 1]), 1)
    with pytest.raises(torch.jit.Error, match="inputs must have the shape"):
        module(torch.randn(2, 2), torch.randn(2, 3))
    with pytest.raises(torch.jit.Error, match="periodic structure"):
        torch.jit.script(refuse_periodic)(torch.tensor([True, False, False]))
