"""Nothing would wait for a GPU, in forward and both backward passes: tensors without memory (meta) cannot be looked at."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efa_addons import EFABlock, EFAConfig, EuclideanFastAttention
from efa_addons.nn import nan_if_periodic, refuse_periodic
from efa_addons.ops.backends import backend


class NoTransfers(TorchDispatchMode):
    """Copies from the CPU to a device wait for it."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        kinds = {t.device.type for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor) and t.dim() > 0}
        assert len(kinds) < 2, function
        return out


@pytest.mark.parametrize(("method", "name"), [("auto", "chunked"), ("auto", "plain"), ("pairwise", "auto")])
def test_attention(options, method, name):
    module = EuclideanFastAttention(max_length=5.0, method=method, **options).to("meta")
    positions = torch.empty(50, 3, device="meta", requires_grad=True)
    batch = torch.empty(50, dtype=torch.long, device="meta")
    x = torch.empty(50, *module.input_shape, device="meta", requires_grad=True)
    with backend(name), NoTransfers():
        for num_graphs in (1, 7):
            energy = module(x, positions, batch, num_graphs).square().sum()
            forces = torch.autograd.grad(energy, [x, positions], create_graph=True)
            sum(force.square().sum() for force in forces).backward()
    assert positions.grad.shape == positions.shape


@pytest.mark.parametrize("frequencies_trainable", [False, True])
def test_block(frequencies_trainable):
    config = EFAConfig(max_length=5.0, method="quadrature", frequencies_trainable=frequencies_trainable)
    block = EFABlock("4x0e+4x1o", "4x0e+4x1o", config).to("meta")
    positions = torch.empty(50, 3, device="meta", requires_grad=True)
    pbc = torch.empty(7, 3, dtype=torch.bool, device="meta")
    with NoTransfers():
        refuse_periodic(pbc)
        out = block(torch.empty(50, 16, device="meta"), positions, torch.empty(50, dtype=torch.long, device="meta"), 7)
        nan_if_periodic(out, pbc).sum().backward()
    assert positions.grad.shape == positions.shape


def test_a_look_is_noticed():
    with pytest.raises(RuntimeError, match="item"):
        bool(torch.empty(3, device="meta").any())
    with pytest.raises(AssertionError), NoTransfers():
        torch.ones(3).to("meta")
