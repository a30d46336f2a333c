"""Numbers that a device computes, looked at without waiting for it: on their way to the CPU while the work goes on."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from efa_addons.ops.tracing import capturing


class Late:
    """A number that every call computes and looks at: at once on a CPU, on a GPU when it has arrived, in a later call.

    The first of a GPU is waited for, so that who calls once is told as well. What is computed while another number is on its
    way is not sent. Nothing is looked at while a CUDA graph is captured.

    Args:
        every: on a GPU only in every so many calls.
    """

    def __init__(self, every: int = 1) -> None:
        self._every = every
        self._calls = 0
        self._sent: tuple[Tensor, Callable[[], bool]] | None = None

    def __call__(self, device: torch.device, compute: Callable[[], Tensor]) -> float | None:
        """The number, or one of an earlier call that has arrived by now, or none.

        Args:
            compute: a tensor of one element on this device.
        """
        if device.type == "meta" or capturing(device):
            return None
        self._calls += 1
        if device.type != "cuda" or self._calls == 1:
            return compute().item()
        found, sent = None, self._sent
        if sent is not None and sent[1]():
            found, self._sent = sent[0].item(), None
        if self._sent is None and self._calls % self._every == 0:
            self._sent = _send(compute())
        return found


def _send(number: Tensor) -> tuple[Tensor, Callable[[], bool]]:
    """A place on the CPU, and whether the number is there."""
    here = torch.empty([], dtype=number.dtype, device="cpu", pin_memory=True)
    here.copy_(number, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record(torch.cuda.current_stream(number.device))
    return here, arrived.query


_of: weakref.WeakKeyDictionary[object, dict[str, Late]] = weakref.WeakKeyDictionary()


def late(owner: object, name: str, every: int = 1) -> Late:
    """The one of this name that belongs to `owner`; kept here, as modules are copied, pickled and scripted without it."""
    own = _of.setdefault(owner, {})
    if name not in own:
        own[name] = Late(every)
    return own[name]
