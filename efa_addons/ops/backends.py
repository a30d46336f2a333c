"""How the quadrature's sums are carried out.

"chunked": part by part (`ops.waves`), in a trace as a node (`ops.library`). "triton": the same sums by kernels
(`ops.triton_waves`) in float32 on NVIDIA devices, in a trace as the same node. "plain": by operations of torch, all at once:
any number of derivatives, and traces that every runtime can run. "auto": plain in traces, otherwise chunked; triton on a GPU
from the day on which its kernels have run on one (`AUTO_TAKES_TRITON`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Iterator
from types import ModuleType

import torch

from efa_addons.errors import EFAError, unknown_names
from efa_addons.ops.tracing import tracing

VARIABLE = "EFA_ADDONS_BACKEND"
PRECISION = "EFA_ADDONS_PRECISION"
BACKENDS = ("auto", "chunked", "plain", "triton")
PRECISIONS = ("tf32x3", "ieee", "tf32", "bf16")
AUTO_TAKES_TRITON = False  # its kernels have been interpreted and compiled, on machines without a GPU
_chosen = os.environ.get(VARIABLE) or "auto"  # read once: torch.compile would ask again and again


def choice() -> str:
    """ "plain", "chunked" for the sums of `ops.waves` (with kernels or without, see `kernels`), or "node" for these in a trace.

    Raises:
        EFAError: EFA_ADDONS_BACKEND is none of `BACKENDS`.
    """
    if _chosen not in BACKENDS:
        raise unknown_names(VARIABLE, [_chosen], BACKENDS)
    if not tracing():
        return "plain" if _chosen == "plain" else "chunked"
    return "node" if _chosen in ("chunked", "triton") else "plain"


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it the sums are carried out as `name` says; otherwise as the environment variable EFA_ADDONS_BACKEND does.

    with backend("plain"):  # any number of derivatives
        ...
    """
    global _chosen
    if name not in BACKENDS:
        raise unknown_names("backend", [name], BACKENDS)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


def kernels(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """`ops.triton_waves` where its kernels take a call with tensors of this kind, otherwise none. Imports triton only then.

    Raises:
        EFAError: triton is asked for, and cannot serve.
    """
    if _chosen == "triton":
        reason = why_not_triton(device, dtype)
        if reason:
            raise EFAError(f"{VARIABLE}=triton cannot serve this call: {reason}; leave it at auto, or take chunked.")
    elif _chosen != "auto" or not AUTO_TAKES_TRITON or device.type != "cuda" or why_not_triton(device, dtype):
        return None
    return importlib.import_module("efa_addons.ops.triton_waves")


@functools.lru_cache
def why_not_triton(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps triton from serving calls with tensors of this kind; nothing where it can. Does not import it."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if dtype != torch.float32:
        return f"its kernels are in float32, and the tensors in {str(dtype).removeprefix('torch.')}"
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "its kernels are for NVIDIA devices"
        if torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0):
            return "its kernels need an NVIDIA device of compute capability 8.0 (Ampere) or later"
        return ""
    if device.type != "cpu" or not interpreted():
        return f"its kernels run on NVIDIA devices, and the tensors are on '{device.type}'"
    return ""


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, slowly: for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")


def precision() -> str:
    """What the kernels' products are rounded to: EFA_ADDONS_PRECISION, by default tf32x3, which is as good as float32."""
    given = os.environ.get(PRECISION) or PRECISIONS[0]
    if given not in PRECISIONS:
        raise unknown_names(PRECISION, [given], PRECISIONS)
    return given


def served_by(device: torch.device, dtype: torch.dtype, traced: bool = False) -> tuple[str, str]:
    """The back end that a call takes, and why."""
    if _chosen not in BACKENDS:
        raise unknown_names(VARIABLE, [_chosen], BACKENDS)
    if _chosen != "auto":
        reason = why_not_triton(device, dtype) if _chosen == "triton" else ""
        return _chosen, f"{VARIABLE}={_chosen}" + (f", an error: {reason}" if reason else "")
    if traced:
        return "plain", "a trace of torch's own operations runs everywhere"
    if device.type != "cuda":
        return "chunked", "the tensors are not on a CUDA device"
    reason = why_not_triton(device, dtype)
    if not reason and not AUTO_TAKES_TRITON:
        reason = f"triton's kernels have not run on a GPU yet; {VARIABLE}=triton takes them"
    return ("chunked", reason) if reason else ("triton", "an NVIDIA device, float32")
