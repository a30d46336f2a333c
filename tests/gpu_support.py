"""Helpers of tests that need a GPU, and skip themselves where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch.nn.modules import module as torch_module

from efa_addons.nn import replay
from efa_addons.ops.backends import interpreted

gpu = pytest.mark.skipif(not torch.cuda.is_available() or interpreted(), reason="needs a GPU")
KERNELS_RUN_ON = "cpu" if interpreted() else "cuda"
kernels = pytest.mark.skipif(
    not (torch.cuda.is_available() or interpreted()), reason="needs a GPU, or TRITON_INTERPRET=1 and triton"
)
_WARM_UP = 3  # kernels are compiled and checked, tables made, and the first of what is looked at late is waited for


def run_interpreted(*arguments: str) -> str:
    """What pytest prints with Triton's interpreter: in a process of its own, as triton is imported for one or the other."""
    command = [sys.executable, "-m", "pytest", "-q", *arguments, "-p", "no:cacheprovider"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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


class _Again:
    """Stands for a CUDA graph: runs what was recorded again, into the same tensors."""

    def __init__(self, run, device, before=None):
        self.run = run
        found = run()
        self.results = found.detach().clone() if isinstance(found, torch.Tensor) else tuple(map(_copied, found))
        self.kept = self.results

    def replay(self):
        with torch.enable_grad():
            found = self.run()
        pairs = [(self.kept, found)] if isinstance(found, torch.Tensor) else zip(self.kept, found, strict=True)
        with torch.no_grad():
            for kept, new in pairs:
                if new is not None:
                    kept.copy_(new)


def _copied(x):
    return None if x is None else x.clone()


def recordings(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Lets blocks of an inference be recorded on a device, be it the CPU."""
    if device == "cpu":
        monkeypatch.setattr(replay, "_ON", ("cpu",))
        monkeypatch.setattr(replay, "_Graph", _Again)
        monkeypatch.setattr(replay, "_warm_up", lambda run, device: run())
    monkeypatch.delenv(replay.VARIABLE, raising=False)
    for hooks in replay._GLOBAL_HOOKS:  # NequIP's own tests leave some
        monkeypatch.setattr(torch_module, hooks, OrderedDict())
