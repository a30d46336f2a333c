"""One structure on several devices: every rank of torch.distributed holds some of its atoms, and EFA sees all of them.

    with atoms_spread():
        energy = model(my_features, my_positions, my_batch, num_graphs).sum()  # this rank's part of the energy
        forces = -torch.autograd.grad(energy, my_positions)[0]  # of all ranks' energy on this rank's atoms

What a rank needs of the others' atoms is their sum: the state, whose size does not depend on the number of atoms. One
all-reduce of it in each block makes it that of the whole structure, one more in each backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from efa_addons.errors import EFAError
from efa_addons.ops.tracing import transformed

_group: Any = None
_spread = False


@contextlib.contextmanager
def atoms_spread(group: Any = None) -> Iterator[None]:
    """Within it, and in the backward passes of what is computed in it, the atoms of a batch are spread over ranks.

    Every rank gives its own atoms (any number, none too), their graphs in `batch`, and the same `num_graphs`. All ranks must
    do the same: call the model, and differentiate their part of the energy. Gradients by parameters are each rank's part, to be
    summed. The quadrature is used for all sizes. Only EFA sees the other ranks' atoms: a host's messages are its own matter.
    What torch.utils.checkpoint makes again in a backward pass is spread only if that is within, too; TorchScript never is.

    Args:
        group: process group; none given: all ranks.

    Raises:
        EFAError: torch.distributed has not been initialised.
    """
    global _group, _spread
    if not (dist.is_available() and dist.is_initialized()):
        raise EFAError("atoms_spread needs torch.distributed: call torch.distributed.init_process_group first.")
    before = _group, _spread
    _group, _spread = group, True
    try:
        yield
    finally:
        _group, _spread = before


def spread() -> bool:
    """Whether atoms are spread over ranks."""
    if torch.jit.is_scripting():
        return False
    else:
        return _spread


def over_ranks(x: Tensor) -> Tensor:
    """The sum of x over all ranks, differentiable, where atoms are spread; otherwise x."""
    if torch.jit.is_scripting():
        return x
    else:
        return _sum(x)


@torch.jit.unused
def _sum(x: Tensor) -> Tensor:
    if not _spread:
        return x
    if transformed():
        raise EFAError(
            "transforms of torch.func do not reach over ranks: leave atoms_spread, or differentiate with torch.autograd."
        )
    return _Sum.apply(x, _group)


class _Sum(torch.autograd.Function):
    """y_r = Σ_s x_s on every rank r. The loss is the sum of all ranks' losses, so dL/dx_s = Σ_r dL_r/dy_r: the same sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None
