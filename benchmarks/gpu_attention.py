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
from benchmarks.gpu_timing import Run, graphed, measured, median, rounded_to
from benchmarks.problems import Problem, arrays
from benchmarks.rows import Row
from efa_addons import EuclideanFastAttention
from efa_addons.ops.backends import backend, precision
from efa_addons.ops.graphs import pair_blocks
from efa_addons.ops.pairwise import attend_pairs

SIZES = (1_000, 10_000, 100_000, 1_000_000)
MOLECULES = ((64, 20), (256, 20), (1024, 20), (256, 100))  # graphs, and atoms of each
COMPARED = 100_000  # up to so many atoms values are compared
TORCH = "chunked"
# Back end and precision of its products, none: the default. The first is what the others' values are compared with.
CONTENDERS = {TORCH: (TORCH, ""), "plain": ("plain", ""), "triton": ("triton", ""), "triton, tf32": ("triton", "tf32")}


def _problems(quick: bool) -> list[Problem]:
    if quick:
        return [Problem(1, 5, 4, 4), Problem(2, 3, 4, 4)]
    return [Problem(1, n, 64, 64) for n in SIZES] + [Problem(g, n, 32, 64) for g, n in MOLECULES]


def attention(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """One module, of the same weights everywhere: forward, forces, training step."""
    for problem in _problems(quick):
        for task in ("forces",) if quick else ("forward", "forces", "training"):
            first: list[np.ndarray] | None = None
            for name, (back_end, rounding) in CONTENDERS.items():
                with backend(back_end), rounded_to(rounding or precision()):
                    row = Row("attention", name, task, **vars(problem))
                    row, found = measured(row, lambda p=problem, t=task: build(QUADRATURE, p, t, device), device, repeats)
                values = _compared(found, problem)
                first = first or values
                row.difference = _difference(values, first) if name != TORCH else None
                yield row


def _compared(found: Any, problem: Problem) -> list[np.ndarray] | None:
    if found is None or problem.atoms > COMPARED:
        return None
    return [value.detach().cpu().numpy() for value in found]


def _difference(values: list[np.ndarray] | None, first: list[np.ndarray] | None) -> float | None:
    """Of the array that differs most, over its largest value."""
    if values is None or first is None:
        return None
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(values, first, strict=True))


def references(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """The JAX reference on the same problems: energy and forces."""
    for problem in _problems(quick):
        row = Row("attention", REFERENCE, "forces", **vars(problem), status=missing(REFERENCE))
        if not row.status:
            ours = Row("attention", TORCH, "forces", **vars(problem))
            with backend(TORCH):
                _, found = measured(ours, lambda p=problem: build(QUADRATURE, p, "forces", device), device, 1)
            row = reference(row, _compared(found, problem), device, repeats)
        yield row


def reference(row: Row, first: list[np.ndarray] | None, device: torch.device, repeats: int) -> Row:
    """In a process of its own, for jax gives no memory back, and one that fails must not end the others."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        try:
            found = process.submit(_by_jax, row.problem, row.task, device.type, repeats, first is not None).result()
        except BrokenProcessPool:
            found = "the process died"
    if isinstance(found, str):
        row.status = found
    else:
        row.ms, row.mib, values = found
        row.difference = _difference(values, first)
    return row


def _by_jax(problem: Problem, task: str, kind: str, repeats: int, wanted: bool) -> str | tuple[float, float | None, Any]:
    """Milliseconds, MiB beside arguments, and values; or why not."""
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # it would take three quarters of the card
    try:
        import jax

        here = jax.devices()[0]
        if {"gpu": "cuda", "cuda": "cuda"}.get(here.platform, here.platform) != kind:
            return f"jax runs on {here.platform}"
        from benchmarks.reference import jax_task

        run = jax_task(problem, arrays(problem), task)
        before = (here.memory_stats() or {}).get("bytes_in_use", 0)
        values = [np.asarray(value) for value in run()] if wanted else run() and None
        peak = (here.memory_stats() or {}).get("peak_bytes_in_use")
        ms = median(run, torch.device("cpu"), repeats)  # its tasks wait for themselves
    except Exception as error:  # of XLA, which has a class for each, and of what it imports
        text = f"{type(error).__name__}: {error}"
        return "out of memory" if "RESOURCE_EXHAUSTED" in text else text.splitlines()[0][:100]
    return ms, None if peak is None else (peak - before) / 2**20, values


def molecules(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """What decides whether a kernel for the sum over pairs is worth writing: energy and forces of batches of molecules.

    The quadrature by kernels, and the sum over pairs by torch's operations with graphs side by side: as it is, and as a CUDA
    graph, where nothing is left of the launching. rate: bytes that these operations move (`benchmarks.gpu_counts`) over time.
    """
    widths = (4, 4) if quick else (gpu_counts.WIDTH_QK, gpu_counts.WIDTH_V)
    for num_graphs, num_atoms in ((2, 3),) if quick else ((256, 20), (64, 64), (1, 1000)):
        problem = Problem(num_graphs, num_atoms, *widths)
        for form, run_of in (("quadrature, kernels", _quadrature), ("pairwise, torch", _pairs)):
            moved = gpu_counts.counted(form, num_graphs, num_atoms, False).bytes
            for launched in ("forces",) if device.type == "cpu" else ("forces", "forces, CUDA graph"):
                with backend("triton"):

                    def make(of: Any = run_of, p: Problem = problem, graph: bool = "graph" in launched) -> Run:
                        run = of(p, device)
                        return graphed(run) if graph else run

                    row, _ = measured(Row("molecules", form, launched, **vars(problem)), make, device, repeats)
                row.rate = 1e-6 * moved / row.ms if row.ms else None
                yield row


def _module(problem: Problem, device: torch.device, method: str) -> tuple[EuclideanFastAttention, torch.Tensor, torch.Tensor]:
    """As `gpu_counts` has it, features and positions."""
    data = arrays(problem)
    module = EuclideanFastAttention(
        problem.width_v, 0, max_length=data.max_length, method=method, num_features_qk=problem.width_qk
    ).to(device)  # fmt: skip
    return module, *(torch.from_numpy(part).to(device) for part in (data.inputs, data.positions))


def _quadrature(problem: Problem, device: torch.device) -> Run:
    module, x, positions = _module(problem, device, "quadrature")
    batch = torch.from_numpy(arrays(problem).batch).to(device)
    return _forces(lambda r: module(x, r, batch, problem.num_graphs).sum(), positions)


def _pairs(problem: Problem, device: torch.device) -> Run:
    module, x, positions = _module(problem, device, "pairwise")
    batch = torch.from_numpy(arrays(problem).batch).to(device)
    layout = pair_blocks(batch, [problem.num_atoms] * problem.num_graphs, problem.num_atoms)
    q, k, v = (project(x.flatten(1, 2)).detach() for project in (module.q, module.k, module.v))
    return _forces(lambda r: attend_pairs(q, k, v, r, module.frequencies, layout).sum(), positions)


def _forces(energy: Any, positions: torch.Tensor) -> Run:
    def run() -> Any:
        r = positions.clone().requires_grad_()
        total = energy(r)
        return total.detach(), torch.autograd.grad(total, [r])[0]

    return run
