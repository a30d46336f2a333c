"""Whether torch is recording what is run, with sizes and values it does not know, or turning it into something else."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def tracing() -> bool:
    """True while torch.compile, torch.export or make_fx record: nothing may then depend on the contents of tensors."""
    return torch.compiler.is_compiling() or get_proxy_mode() is not None  # in this order: dynamo cannot look at the second


def transformed() -> bool:
    """True within transforms of torch.func (grad, vmap, …) and forward differentiation, which know torch's operations only."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
