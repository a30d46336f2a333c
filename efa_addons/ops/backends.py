"""How the quadrature's sums are carried out.

"chunked": part by part (`ops.parts`), in a trace as a node (`ops.library`). "triton": the same sums by kernels
(`ops.triton_waves`) in float32 on NVIDIA devices, in a trace as the same node. "plain": by operations of torch, all at once:
any number of derivatives, and traces that every runtime can run; the sums over pairs, too. "auto": plain in traces and within
transforms of torch.func, otherwise triton where it can serve and its kernels have passed a check on that very device
(`ops.selfcheck`), else chunked.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
import os
import warnings
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from efa_addons.errors import EFAError, EFAWarning, unknown_names
from efa_addons.ops import selfcheck
from efa_addons.ops.tracing import capturing, imagined, tracing, transformed

VARIABLE = "EFA_ADDONS_BACKEND"
PRECISION = "EFA_ADDONS_PRECISION"
BACKENDS = ("auto", "chunked", "plain", "triton")
PRECISIONS = ("tf32x3", "ieee", "tf32", "bf16")
_KERNELS = "efa_addons.ops.triton_waves"  # by its name only: what packages a model would bring triton along
_TRITON = (3, 4)  # the oldest release that compiles them
_AUTO_ON = ("cuda",)  # devices on which auto takes kernels into consideration
_chosen = os.environ.get(VARIABLE) or "auto"  # read once: torch.compile would ask again and again


def choice() -> str:
    """ "plain", "chunked" for the sums of `ops.waves` (with kernels or without, see `kernels`), or "node" for these in a trace.

    Raises:
        EFAError: EFA_ADDONS_BACKEND is none of `BACKENDS`.
    """
    if _chosen not in BACKENDS:
        raise unknown_names(VARIABLE, [_chosen], BACKENDS)
    if not tracing():
        return "plain" if _chosen == "plain" or (_chosen == "auto" and transformed()) else "chunked"
    return "node" if _chosen in ("chunked", "triton") else "plain"


def state() -> tuple[str, str, int]:
    """What is asked for, as a back end and as products of kernels, and how many kinds of calls were given up."""
    return _chosen, precision(), sum(map(bool, _found.values()))


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it the sums are carried out as `name` says; otherwise as the environment variable EFA_ADDONS_BACKEND does.

    For the whole process, as autograd has threads of its own: threads that ask for different ones get in each other's way.

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


class Kind(NamedTuple):
    """A kind of sums for which kernels are compiled, and checked, together."""

    device: torch.device
    dtype: torch.dtype
    second: bool  # derivatives, or values and first ones
    mixed: bool  # with harmonics under the integral

    def __str__(self) -> str:
        what = "second derivatives" if self.second else "values and first derivatives"
        return what + (" with harmonics" if self.mixed else "")


def kernels(kind: Kind, num_features: int = 0) -> ModuleType | None:
    """`ops.triton_waves` where its kernels take a call of this kind, otherwise none. Imports triton only then.

    Args:
        num_features: channels times atoms of a block.

    Raises:
        EFAError: triton is asked for, and cannot serve.
    """
    if imagined():
        return None  # kernels read memory
    if _chosen == "triton":
        reason = why_not_triton(kind.device, kind.dtype) or _too_many(num_features)
        if reason:
            raise EFAError(f"{VARIABLE}=triton cannot serve this call: {reason}; leave it at auto, or take chunked.")
    elif (
        _chosen != "auto"
        or kind.device.type not in _AUTO_ON
        or why_not_triton(kind.device, kind.dtype)
        or _too_many(num_features)
        or distrusted(kind)
    ):
        return None
    return importlib.import_module(_KERNELS)


def _too_many(num_features: int) -> str:
    if num_features < 2**31:
        return ""
    return f"its kernels count channels times atoms in 32 bits, and there are {num_features:.1e}"


_found: dict[tuple[Kind, str], str] = {}  # what is wrong with the kernels of a kind in a precision, or nothing


def distrusted(kind: Kind) -> str:
    """Why auto does not take kernels that can serve; nothing where they have passed their check.

    The first call of a kind runs the check, and waits for the device. Not while a CUDA graph is captured or a dispatch mode (of
    torch's tensors without memory, say) is on, where nothing may be looked at: such calls take chunked, and a later one checks.
    """
    key = kind, precision()
    if key not in _found:
        if _nothing_may_be_looked_at(kind.device):
            return "the kernels have not been checked yet"
        try:
            _found[key] = check(kind)[0]
        except torch.OutOfMemoryError:
            return "there was no memory for the check of the kernels"
        if _found[key]:
            _give_up(kind, _found[key])
    return _found[key]


def check(kind: Kind) -> tuple[str, float]:
    """What is wrong with the kernels on a device where they can serve, or nothing; and their largest error."""
    try:
        error = selfcheck.largest_error(importlib.import_module(_KERNELS), kind.device, kind.second, kind.mixed)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of any compiler or driver
        return _failed(failure), math.inf
    limit = selfcheck.LIMITS[precision()]
    return "" if error <= limit else f"their sums differ from torch's by {error:.1e}, where {limit:.0e} is allowed", error


@contextlib.contextmanager
def giving_up(kind: Kind) -> Iterator[None]:
    """Around a call of kernels: under auto what goes wrong there is a warning, and the next lines are for torch to serve.

    The check cannot know all shapes: tiles of a call may be more than a card of another make has room for.
    """
    try:
        yield
    except Exception as failure:
        if _chosen != "auto" or isinstance(failure, EFAError | torch.OutOfMemoryError):
            raise
        _give_up(kind, _failed(failure))


def _give_up(kind: Kind, reason: str) -> None:
    _found[kind, precision()] = reason
    warnings.warn(
        f"triton's kernels are not used on {kind.device} for {kind}: {reason}. Torch carries out these sums from now on "
        f"(chunked), with the same result in more time. {VARIABLE}=chunked leaves the kernels alone without this warning, "
        f"{VARIABLE}=triton takes them unchecked and shows what goes wrong.",
        EFAWarning,
        stacklevel=2,
    )


def _failed(failure: Exception) -> str:
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return ": ".join(["they failed with " + type(failure).__name__, *(line[:200] for line in lines[:1])])


def _nothing_may_be_looked_at(device: torch.device) -> bool:
    return tracing() or _get_current_dispatch_mode() is not None or capturing(device)


@functools.lru_cache
def why_not_triton(device: torch.device, dtype: torch.dtype) -> str:
    """What keeps triton from serving calls with tensors of this kind; nothing where it can. Does not import it."""
    reason = _no_triton()
    if reason:
        return reason
    if importlib.util.find_spec("efa_addons") is None:  # a packaged model that brings its own, which has no kernels
        return "the package efa_addons is not installed"
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


def _no_triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    for package in ("triton", "pytorch-triton", "triton-windows"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(package)
            if tuple(map(int, version.split(".")[:2])) < _TRITON:
                return f"triton {version} is installed, and its kernels need {'.'.join(map(str, _TRITON))} or later"
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
    if device.type not in _AUTO_ON:
        return "chunked", "the tensors are not on a CUDA device"
    reason = why_not_triton(device, dtype)
    if not reason and device.type == "cuda" and not torch.cuda.is_available():
        return "triton", "once its kernels have passed their check there; no such device is here"
    reason = reason or distrusted(Kind(device, dtype, second=False, mixed=False))
    return ("chunked", reason) if reason else ("triton", "its kernels have passed their check on this device")
