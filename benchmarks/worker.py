"""A contender in a process of its own, which is stopped when a task takes too much time or memory. Needs Linux (/proc)."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.contenders import Task, build
from benchmarks.problems import Problem
from benchmarks.rows import in_a_line

M_MMAP_THRESHOLD = -3  # of malloc.h
START_SECONDS = 600.0  # imports, the first small problem, and compilation: no part of what is measured


class Failed(Exception):
    """Over time or memory, or an error of the contender."""


def _status(process: int | str, field: str) -> int:
    """Bytes of VmRSS or VmHWM."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return 1024 * int(line.split()[1])
    raise Failed("the process died")


def _prepare(run: Task) -> None:
    """Building it was all."""


def _measure(run: Task) -> tuple[float, list[np.ndarray]]:
    """Largest resident memory during a run over that before it (bytes), and the arrays. Not in a process that is timed."""
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)  # pages of its own for every array: no fragmentation, which is chance
    libc.malloc_trim(0)  # what was freed before must not hide what is needed now
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    before = _status("self", "VmRSS")
    values = run()
    return _status("self", "VmHWM") - before, [np.asarray(value) for value in values]


def _time(run: Task, seconds: float) -> float:
    """Least wall time of a call among those that fit into `seconds`, at least one."""
    least, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        least = min(least, now - start)
        if now + least > end:
            return least


class _Operations(TorchDispatchMode):
    """Counts the floating point operations of matrix products; torch's own FlopCounterMode fails in autograd.grad."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")  # of addmm_, which the table lacks, as of addmm
        count = flop_registry.get(getattr(torch.ops.aten, name, None))
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _operations(run: Task) -> int:
    with _Operations() as counter:
        run()
    return counter.total


def _serve(connection: Connection, contender: str, problem: Problem, threads: int) -> None:
    """Answers requests (what, task, *arguments) until there is None."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    does = {"prepare": _prepare, "measure": _measure, "time": _time, "operations": _operations}
    tasks: dict[str, Task] = {}
    build(contender, Problem(1, 4, problem.width_qk, problem.width_v, problem.degree), "forces")()  # threads and libraries
    connection.send((None, _status("self", "VmRSS")))
    while (request := connection.recv()) is not None:
        what, task, *rest = request
        try:
            if task not in tasks:
                tasks[task] = build(contender, problem, task)
            connection.send((None, does[what](tasks[task], *rest)))
        except Exception as error:
            connection.send((in_a_line(error), None))


class Worker:
    """A process that holds one contender at one problem.

    Args:
        memory: bytes above those at the start at which it is stopped.
        seconds: the longest that a request may take, compilation apart.
    """

    def __init__(self, contender: str, problem: Problem, threads: int, memory: float, seconds: float) -> None:
        self.contender, self.problem, self.threads = contender, problem, threads
        self.memory, self.seconds = memory, seconds
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        arguments = (other, self.contender, self.problem, self.threads)
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        other.close()
        self.base = 0

    def ask(self, what: str, task: str, *arguments: Any) -> Any:
        """The answer to "prepare", "measure", "time" (s) or "operations".

        Raises:
            Failed: and the process is started again, without the task.
        """
        if not self.base:
            self.base = self._wait(START_SECONDS)
        for request in (("prepare", task), (what, task, *arguments)):
            self.connection.send(request)
            answer = self._wait(START_SECONDS if request[0] == "prepare" else self.seconds)
        return answer

    def _wait(self, seconds: float) -> Any:
        end = time.perf_counter() + seconds
        try:
            while not self.connection.poll(0.02):
                if self.base and _status(self.process.pid, "VmRSS") - self.base > self.memory:
                    raise Failed(f"over {self.memory / 2**30:.0f} GiB")
                if time.perf_counter() > end:
                    raise Failed(f"over {seconds:.0f} s")
            error, answer = self.connection.recv()
        except (EOFError, OSError):
            error, answer = "the process died", None
        except Failed as failed:
            error, answer = str(failed), None
        if error:
            self.stop()
            self._start()
            raise Failed(error)
        return answer

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
