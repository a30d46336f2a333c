"""The limits of the machine: rate of matrix products and memory bandwidth, by torch, in a process of its own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def installed(*packages: str) -> list[str]:
    """Names and versions of those that are."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            pass
    return found


def processor() -> str:
    """Its name as the kernel has it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return "unknown CPU"


def available() -> int:
    """Bytes of memory that are free."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/meminfo has no MemAvailable")


def _least(run: Callable[[], object], seconds: float) -> float:
    best, end = float("inf"), time.perf_counter() + seconds
    run()
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def _limits(threads: int, quick: bool) -> list[tuple[str, float, float, str]]:
    torch.set_num_threads(threads)
    seconds, scale = (0.02, 16) if quick else (3.0, 1)
    n = 2048 // scale
    products = [("square", n, n, n)]
    for atoms in (4096 // scale, 16384 // scale):  # state and read-out of 50 directions, D_qk = D_v = 64
        products += [(f"state of {atoms} atoms", 3200, atoms, 64), (f"read-out of {atoms} atoms", atoms, 3200, 64)]
    rows = []
    for name, a, b, c in products:
        left, right, out = torch.randn(a, b), torch.randn(b, c), torch.empty(a, c)
        took = _least(lambda left=left, right=right, out=out: torch.mm(left, right, out=out), seconds)
        rows.append((f"matrix product {a} x {b} x {c} ({name})", took, 2e-9 * a * b * c / took, "GFlop/s"))
    source = torch.randn(2**26 // scale)
    target = torch.empty_like(source)
    took = _least(lambda: target.copy_(source), seconds)
    size = source.nbytes
    rows.append((f"copy of {size >> 20} MiB (read and write)", took, 2e-9 * size / took, "GB/s"))
    return rows


def limits(threads: int, quick: bool) -> list[tuple[str, float, float, str]]:
    """(what, seconds, rate, its unit) of each limit, the square matrix product first and the copy last."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_limits, (threads, quick))
