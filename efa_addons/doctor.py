"""What is installed here, and which back end a call of the quadrature takes."""

from __future__ import annotations

import platform
from importlib import metadata

import torch

from efa_addons.nn import replay
from efa_addons.ops.backends import PRECISION, VARIABLE, Kind, check, precision, served_by, why_not_triton
from efa_addons.version import __version__

PACKAGES = ("torch", "e3nn", "triton", "mace-torch", "nequip", "schnetpack", "torch-scatter", "cuequivariance")


def report() -> str:
    """Lines of text: packages, devices, and back ends with the reason for each."""
    lines = [f"efa_addons {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"]
    lines += [f"  {name:<15} {_version(name)}" for name in PACKAGES]
    lines.append(f"device: {_device()}")
    lines.append(f"back ends of the quadrature ({VARIABLE}):")
    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cuda"]
    for device in ("cpu", *devices):
        for dtype in (torch.float32, torch.float64):
            name, reason = served_by(torch.device(device), dtype)
            lines.append(f"  {device + ', ' + str(dtype).removeprefix('torch.'):<15} {name}: {reason}")
    name, reason = served_by(torch.device("cpu"), torch.float32, traced=True)
    lines.append(f"  {'in traces':<15} {name}: {reason}")
    lines.append(f"products of triton's kernels ({PRECISION}): {precision()}")
    lines.append(f"blocks of an inference on a GPU ({replay.VARIABLE}): {'replayed' if replay.wanted() else 'launched'}")
    for number in range(torch.cuda.device_count()):
        lines += checks(torch.device("cuda", number))
    return "\n".join(lines)


def checks(device: torch.device) -> list[str]:
    """What the check of triton's kernels says on a device."""
    reason = why_not_triton(device, torch.float32)
    if reason:
        return [f"check of triton's kernels on {device}: none, {reason}"]
    lines = [f"check of triton's kernels on {device}, relative errors:"]
    for second, mixed in ((False, False), (True, False), (False, True), (True, True)):
        kind = Kind(device, torch.float32, second, mixed)
        try:
            wrong, error = check(kind)
            lines.append(f"  {kind}: " + (wrong or f"{error:.1e}"))
        except torch.OutOfMemoryError:
            lines.append(f"  {kind}: no memory for the check")
    return lines


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device() -> str:
    if not torch.cuda.is_available():
        return "no CUDA device"
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join(names) + f" (CUDA {torch.version.cuda})"
