"""Whether torch is recording what is run, with sizes and values it does not know, or turning it into something else."""

from __future__ import annotations

import contextlib

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def tracing() -> bool:
    """True while torch.compile, torch.export or make_fx record, or tensors have no values: nothing may depend on these."""
    # in this order: dynamo cannot look at the others
    return torch.compiler.is_compiling() or get_proxy_mode() is not None or imagined()


def imagined() -> bool:
    """True within FakeTensorMode, whose tensors have shapes and no memory."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is captured on this device: torch itself answers for the current one."""
    if device.type != "cuda":
        return False
    with contextlib.nullcontext() if device.index is None else torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def transformed() -> bool:
    """True within transforms of torch.func (grad, vmap, …) and forward differentiation, which know torch's operations only."""
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
