"""The sums as operators of torch.library: results lie in memory as a trace is told, which compiled code relies on."""

import pytest
import torch
from test_kernels import case, single
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from efa_addons.ops.backends import backend

ALL = [True] * 5
OPERATORS = {
    "wave_state": lambda x, y, r, f, state, *waves: (x, y, r, f, *waves),
    "wave_read_out": lambda x, y, r, f, state, *waves: (x, state, r, f, *waves),
    "wave_first": lambda *given: (*given, ALL),
    "wave_second": lambda *given: (*given, *given[:5], ALL),
}


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="needs a later torch, which knows the tag")
@pytest.mark.parametrize("operator", OPERATORS)
def test_inductor_captures_no_operator(operator):
    """It would capture what the kernels keep for later calls."""
    assert torch.Tag.cudagraph_unsafe in getattr(torch.ops.efa_addons, operator).default.tags


@pytest.mark.parametrize("turned", [False, True], ids=["as they come", "turned"])
@pytest.mark.parametrize("name", ["chunked", "triton"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_strides(operator, name, turned):
    tensors, waves = single(*case(5, 6, components=2, graph=(0, 0, 1)))
    if turned:  # the same numbers, in another order in memory
        tensors = [tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for tensor in tensors]
    given = OPERATORS[operator](*tensors, *waves)
    mode = FakeTensorMode()
    run = getattr(torch.ops.efa_addons, operator)
    with backend(name):
        found = run(*given)
        with mode:
            expected = run(*tree_map_only(torch.Tensor, mode.from_tensor, given))
    for value, fake in zip(*([each] if isinstance(each, torch.Tensor) else each for each in (found, expected)), strict=True):
        assert (value.shape, value.stride()) == (fake.shape, fake.stride())
