"""Helpers of tests that need a GPU, and skip themselves where there is none."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch

from efa_addons.ops.backends import interpreted

gpu = pytest.mark.skipif(not torch.cuda.is_available() or interpreted(), reason="needs a GPU")
_WARM_UP = 3  # kernels are compiled and checked, tables made, and the first of what is looked at late is waited for


def waits(run: Callable[[], object]) -> int:
    """How often a call makes the CPU wait for the GPU, once the first calls are over."""
    for _ in range(_WARM_UP):
        run()
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
