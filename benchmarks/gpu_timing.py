"""How the benchmarks of a GPU measure: time, memory, and switches."""

from __future__ import annotations

import contextlib
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from benchmarks.rows import Row, in_a_line
from efa_addons.ops.backends import PRECISION

Run = Callable[[], Any]
NOT_INSTALLED, OUT_OF_MEMORY = "not installed", "out of memory"


def measured(row: Row, build: Callable[[], Run], device: torch.device, repeats: int) -> tuple[Row, Any]:
    """The row with time and memory or why not, and what a call returned."""
    values = None
    try:
        run = build()
        values = run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            run()
            row.mib = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        row.ms = median(run, device, repeats)
    except (torch.OutOfMemoryError, MemoryError):
        row.status = OUT_OF_MEMORY
    except Exception as error:  # of any compiler: the others are worth measuring
        row.status = in_a_line(error)
    run = None  # with all that it holds
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # after an illegal address everything fails: the row says whose it was
            torch.cuda.empty_cache()
    return row, values


def median(run: Run, device: torch.device, repeats: int) -> float:
    """Milliseconds of a call, the device waited for before and after; two calls warm up (Triton compiles in the first)."""
    for _ in range(2):
        run()
    return medians([run], device, repeats)[0]


def medians(runs: Sequence[Run], device: torch.device, repeats: int) -> list[float]:
    """As `median`, of several in alternation, all of them warm."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, found in zip(runs, times, strict=True):
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            found.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(found) for found in times]


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def on_device(row: Row, run: Run, device: torch.device, repeats: int) -> Row:
    """The row with the milliseconds that the device works for a call, whatever launching takes: all of its kernels.

    By torch's profiler, which leaves launching slower for the rest of the process (pytorch pull request 146604): nothing is to
    be timed after it.
    """
    try:
        row.ms = _profiled(run, device, repeats) or None
        row.status = "" if row.ms else "the profiler saw nothing of the device"
    except Exception as error:  # of the profiler's library: it may be another's
        row.status = in_a_line(error)
    return row


def _profiled(run: Run, device: torch.device, repeats: int) -> float:
    kind = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    run()
    wait(device)
    with torch.profiler.profile(activities=[kind]) as record:
        for _ in range(repeats):
            run()
        wait(device)
    what = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    return sum(getattr(event, what) for event in record.key_averages()) / 1000 / repeats


def graphed(run: Run) -> Run:
    """The same as a CUDA graph: what is left where the CPU launches nothing."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph):
            kept = run()
    except BaseException:
        torch.cuda.set_stream(stream)  # a capture that fails may leave its own
        raise

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


@contextlib.contextmanager
def torch_tf32(allowed: bool) -> Iterator[None]:
    """Within it torch's own matrix products of float32 may be in TF32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@contextlib.contextmanager
def variable(name: str, value: str | None) -> Iterator[None]:
    """Within it the environment variable has this value, or is not set."""
    before = os.environ.get(name)

    def put(value: str | None) -> None:
        os.environ.pop(name, None)
        os.environ.update({} if value is None else {name: value})

    put(value)
    try:
        yield
    finally:
        put(before)


def rounded_to(precision: str) -> contextlib.AbstractContextManager[None]:
    """Within it the kernels' products are."""
    return variable(PRECISION, precision)
