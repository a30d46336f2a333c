"""Of `benchmarks.gpu`: the attention by each back end and by the JAX reference, single structures and batches of molecules."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import torch

from benchmarks import gpu_counts
from benchmarks.contenders import QUADRATURE, REFERENCE, build, missing
from benchmarks.gpu_timing import OUT_OF_MEMORY, Run, graphed, measured, median, rounded_to, torch_tf32
from benchmarks.problems import TASKS, Problem, arrays
from benchmarks.rows import Row, in_a_line
from efa_addons.ops import backends
from efa_addons.ops.backends import backend

SIZES = (1_000, 10_000, 100_000, 1_000_000)
MOLECULES = ((64, 20), (256, 20), (1024, 20), (256, 100))  # graphs, and atoms of each
COMPARED = 100_000  # up to so many atoms values are compared
TORCH = "chunked"
GRAPHED = "forces, CUDA graph"
# Back end and precision of its products, none: the default. The first is what the others' values are compared with.
CONTENDERS = {f"{name}{', tf32' * bool(p)}": (name, p) for p in ("", "tf32") for name in (TORCH, "plain", "triton")}


def _problems(quick: bool) -> list[Problem]:
    if quick:
        return [Problem(1, 5, 4, 4), Problem(2, 3, 4, 4)]
    return [Problem(1, n, 64, 64) for n in SIZES] + [Problem(g, n, 32, 64) for g, n in MOLECULES]


def attention(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """One module, of the same weights everywhere: forward, forces (within a CUDA graph, too), training step."""
    for problem in _problems(quick):
        for task in ("forces",) if quick else TASKS:
            first: list[np.ndarray] | None = None
            for name, (back_end, precision) in CONTENDERS.items():
                # one that runs out of memory while it is captured would spoil what comes after
                captured = device.type == "cuda" and task == "forces" and problem.atoms <= COMPARED
                for way in (task, GRAPHED) if captured else (task,):

                    def make(p: Problem = problem, t: str = task, graph: bool = way == GRAPHED) -> Run:
                        run = build(QUADRATURE, p, t, device)
                        return graphed(run) if graph else run

                    with backend(back_end), rounded_to(precision or backends.precision()), torch_tf32(precision == "tf32"):
                        row, found = measured(Row("attention", name, way, **vars(problem)), make, device, repeats)
                    values = _compared(found, problem)
                    row.difference = _difference(values, first)
                    if way == GRAPHED:
                        row.mib = None  # that of a graph is its own
                    elif name == TORCH:
                        first = values
                    yield row


def _compared(found: Any, problem: Problem) -> list[np.ndarray] | None:
    if found is None or problem.atoms > COMPARED:
        return None
    return [value.detach().cpu().numpy() for value in found]


def _difference(values: list[np.ndarray] | None, first: list[np.ndarray] | None) -> float | None:
    """Of the array that differs most, over its largest value; NaN if one is."""
    if values is None or first is None:
        return None
    return float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in zip(values, first, strict=True)]))


def references(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """The JAX reference on the same problems: energy and forces, and training steps."""
    for problem in _problems(quick):
        for task in ("forces",) if quick else ("forces", "training"):
            row = Row("attention", REFERENCE, task, **vars(problem), status=missing(REFERENCE))
            if not row.status:
                ours = Row("attention", TORCH, task, **vars(problem))
                with backend(TORCH):
                    _, found = measured(ours, lambda p=problem, t=task: build(QUADRATURE, p, t, device), device, 1)
                row = reference(row, _compared(found, problem), device, repeats)
            yield row


def reference(row: Row, first: list[np.ndarray] | None, device: torch.device, repeats: int) -> Row:
    """In a process of its own, for jax gives no memory back, and one that fails must not end the others."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            found = process.submit(_by_jax, row.problem, row.task, device, repeats, first is not None).result()
        except BrokenProcessPool:
            found = "the process died"
    if isinstance(found, str):
        row.status = found
    else:
        row.ms, row.mib, values = found
        row.difference = _difference(values, first)
    return row


def _by_jax(
    problem: Problem, task: str, device: torch.device, repeats: int, wanted: bool
) -> str | tuple[float, float | None, Any]:
    """Milliseconds, MiB of what a call makes (as the compiler laid it out), and values; or why not."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # it would take three quarters of the card
    try:
        import jax

        here = jax.devices()[device.index or 0]
        if {"gpu": "cuda"}.get(here.platform, here.platform) != device.type:
            return f"jax runs on {here.platform}"
        from benchmarks.reference import jax_task

        with jax.default_device(here):
            run = jax_task(problem, arrays(problem), task)
            values = [np.asarray(value) for value in run()] if wanted else None
            ms = median(run, torch.device("cpu"), repeats)  # its tasks wait for themselves
    except Exception as error:  # of XLA, which has a class for each, and of what it imports
        return OUT_OF_MEMORY if "RESOURCE_EXHAUSTED" in str(error) else in_a_line(error)
    return ms, run.mib, values


def molecules(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """What decides whether a kernel for the sum over pairs is worth writing: energy and forces of batches of molecules.

    The quadrature by kernels and the sum over pairs by torch's operations, weights frozen: as it is, and as a CUDA graph, where
    nothing is left of the launching, nor of waiting for the sizes of graphs, which a graph must know.
    rate: bytes that these operations move (`benchmarks.gpu_counts`) over time.
    """
    problems = [Problem(2, 3, 4, 4, points=0)] if quick else gpu_counts.CASES
    for problem in problems:
        for form in (gpu_counts.KERNELS, gpu_counts.PAIRS):
            moved = gpu_counts.counted(form, problem, False).bytes
            first: list[np.ndarray] | None = None
            for launched in ("forces",) if device.type == "cpu" else ("forces", GRAPHED):

                def make(form: str = form, p: Problem = problem, graph: bool = launched == GRAPHED) -> Run:
                    run = gpu_counts.task(form, p, device, known=graph)
                    return graphed(run) if graph else run

                with backend("triton"):
                    row, found = measured(Row("molecules", form, launched, **vars(problem)), make, device, repeats)
                values = _compared(found, problem)
                row.difference, first = _difference(values, first), values
                row.rate = 1e-6 * moved / row.ms if row.ms else None
                row.mib = None if launched == GRAPHED else row.mib  # that of a graph is its own
                yield row
