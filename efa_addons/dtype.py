"""The dtype of new tensors, and of what is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function in the precision of its arguments: autocast would round phases to half. For forward and backward alike."""

    @functools.wraps(function)
    def run(*args: Any) -> Any:
        first = next(argument for argument in args if isinstance(argument, torch.Tensor))
        if not torch.amp.is_autocast_available(first.device.type):
            return function(*args)
        with torch.autocast(first.device.type, enabled=False):
            return function(*args)

    return run
