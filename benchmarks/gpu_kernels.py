"""Of `benchmarks.gpu`: whether the kernels are right at real sizes, the card's limits, and what the kernels reach of them."""

from __future__ import annotations

import functools
import importlib.util
import math
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NamedTuple

import torch

from benchmarks.gpu_timing import NOT_INSTALLED, OUT_OF_MEMORY, graphed, median, rounded_to, torch_tf32
from benchmarks.problems import TOLERANCE
from benchmarks.rows import Row, in_a_line
from efa_addons.ops import parts, waves
from efa_addons.ops.backends import PRECISIONS, backend
from efa_addons.ops.grid import frequency_groups, make_grid
from efa_addons.ops.selfcheck import LIMITS

TIMED = tuple(name for name in PRECISIONS if name != "ieee")  # which is for comparison only
WIDTHS = (32, 64, 128)  # D_qk = D_v of the kernels' rates


class Case(NamedTuple):
    """Sums of so many graphs and blocks, atoms of each block, and channels (twice: D_qk = D_v); degree of Y; largest phase."""

    graphs: int
    blocks: int
    atoms: int
    width: int
    degree: int = 0
    phase: float = 10 * math.pi


# Single structures, molecules, harmonics, and the largest at last.
GATE = (
    Case(1, 1, 4097, 64), Case(1, 1, 20_001, 128), Case(300, 571, 21, 64), Case(1, 1, 1000, 20, 1), Case(1, 1, 1_000_000, 64),
)  # fmt: skip
QUICK = (Case(1, 1, 20, 4, 0, math.pi), Case(2, 3, 3, 4, 0, math.pi))


def sums(device: torch.device, dtype: torch.dtype, case: Case) -> tuple[list[Any], parts.Waves]:
    """x, y, r, ω, T and waves; mixed by the odd Y for degree 1."""
    graphs, blocks, atoms, width, degree, phase = case
    torch.manual_seed(0)
    phases = torch.linspace(0, phase, width // 2)
    grid = make_grid(frequency_groups(phases.tolist(), TOLERANCE, degree), [1.0] * (degree + 1))
    weights = grid.odd.to(device, dtype) if degree else None
    graph = torch.arange(blocks, device=device) * graphs // blocks
    described = parts.Waves(
        grid.directions.to(device, dtype), weights, grid.num_directions, grid.num_channels, graph, graphs,
        graphs == blocks, degree == 1,
    )  # fmt: skip
    components = 1 if weights is None else weights.shape[1]
    shapes = [(blocks, 2, width // 2, atoms), (blocks, components, atoms, width), (blocks, 3, atoms)]
    x, y, r = (torch.randn(shape, device=device) for shape in shapes)
    state = torch.randn(graphs, parts.num_rows(described, 2), width, device=device)
    frequencies = phases.to(device) / 20.0  # 1/Å
    return [tensor.to(dtype) for tensor in (x, y, 4 * r, frequencies, state)], described


def gate(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """All five derivatives and all five second ones against the same sums in float64, part by part.

    Errors of sums in float32 grow with the root of their terms: beyond 20,000 atoms the limit does, too. The rows say what a
    card had no room for, which was not checked.
    """
    if importlib.util.find_spec("triton") is None:
        yield Row("gate", "triton", "ten derivatives", status=NOT_INSTALLED)
        return
    cases, precisions = (QUICK, TIMED[:1]) if quick else (GATE, TIMED)
    if not quick:
        _compile_ahead(device, [(case, name, *one) for case in cases for name in precisions for one in _ONE_BY_ONE])
    failed = []
    for case in cases:
        graphs, blocks, atoms, width, degree, _ = case
        errors: dict[str, float] = {}
        status = ""
        try:
            _largest_errors(device, precisions, case, errors)
        except torch.OutOfMemoryError:  # what was found before holds
            status = OUT_OF_MEMORY
        except Exception as error:  # of any compiler
            errors, status = dict.fromkeys(precisions, math.inf), in_a_line(error)
        for precision in precisions:
            row = Row(
                "gate", precision, "ten derivatives", graphs, blocks * atoms // graphs, width, width, degree, status=status
            )
            row.difference = errors.get(precision)
            yield row
            limit = LIMITS[precision] * max(1.0, blocks * atoms / 20_000) ** 0.5
            if row.difference is not None and not row.difference <= limit:
                failed.append(f"{precision}, {row.problem} atoms, width {width}, degree {degree}: {row.difference:.2g}")
    if failed:
        raise SystemExit("gate: the kernels are wrong, nothing is timed. " + "; ".join(failed))


def _largest_errors(device: torch.device, precisions: Sequence[str], case: Case, errors: dict[str, float]) -> None:
    """Fills in the errors, one derivative after the other, so that a million atoms fit."""
    exact, single = sums(device, torch.float64, case), sums(device, torch.float32, case)
    for places, second in _ONE_BY_ONE:
        expected = _derivatives(parts, exact, places, second)[places[0]]
        for precision in precisions:
            with rounded_to(precision), backend("triton"):
                found = _derivatives(waves, single, places, second)[places[0]]
            error = float((found - expected).norm() / expected.norm())
            errors[precision] = max(errors.get(precision, 0.0), error if error == error else math.inf)


_ONE_BY_ONE = [((place,), second) for place in range(5) for second in (False, True)]
# Places of the derivatives of a task, whether they are second ones, and how many sums' operations it takes.
_OF_RATES = {
    "state": ((4,), False, 1),
    "read-out": ((1,), False, 1),
    "gradient": ((0, 2), False, 1),
    "all": (tuple(range(5)), False, 3),
    "second": (tuple(range(5)), True, 7),
}


def _derivatives(module: Any, arguments: tuple[list[Any], parts.Waves], places: Sequence[int], second: bool) -> parts.Partials:
    values, described = arguments
    needed = [number in places for number in range(5)]
    if second:
        return module.second_partials(*values, described, [torch.ones_like(v) for v in values], needed)
    return module.partials(*values, described, needed)


def _compile_ahead(device: torch.device, jobs: Sequence[tuple[Case, str, tuple[int, ...], bool]]) -> None:
    """Kernels of (case, precision, places, second), in as many processes as there are cores: one by one takes many minutes."""
    small = sorted({(_small(case), *rest) for case, *rest in jobs})
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1), mp_context=context) as pool:
        for number, done in enumerate(as_completed([pool.submit(_compile, device.type, *job) for job in small])):
            if done.exception():  # it will be told where the kernel is needed
                continue
            print(f"\rcompiled {number + 1} of {len(small)}", end="", flush=True)
    print()


def _small(case: Case) -> Case:
    """One for which the same kernels are compiled: Triton asks whether 16 divides the atoms."""
    atoms = case.atoms if case.atoms < 512 else 256 + case.atoms % 16
    return case._replace(graphs=1, blocks=1, atoms=atoms)


def _compile(kind: str, case: Case, precision: str, places: tuple[int, ...], second: bool) -> None:
    with rounded_to(precision), backend("triton"):
        _derivatives(waves, sums(torch.device(kind), torch.float32, case), places, second)


def limits(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """Matrix products of the card's own library, and a copy."""
    n = 64 if quick else 8192
    for name, dtype, tf32 in (("fp32", torch.float32, False), ("TF32", torch.float32, True), ("bf16", torch.bfloat16, False)):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        with torch_tf32(tf32):
            ms = median(lambda a=a, b=b: a @ b, device, repeats)
        yield Row("limits", "machine", f"{name} product", ms=ms, rate=2e-6 * n**3 / ms)
    source = torch.randn(2**16 if quick else 2**30, device=device)
    target = torch.empty_like(source)
    ms = median(lambda: target.copy_(source), device, repeats)
    yield Row("limits", "machine", "copy", ms=ms, rate=2e-6 * source.nbytes / ms)


def rates(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """Each sum alone: 2 N R D_v operations, whatever the number of products that a precision makes of each.

    As a CUDA graph, where nothing is left of the launching, and launched.
    """
    precisions = TIMED[:1] if quick else TIMED
    cases = QUICK[:1] if quick else [Case(1, 1, 65_536, width) for width in WIDTHS]
    if not quick:
        _compile_ahead(device, [(case, name, *job[:2]) for case in cases for name in precisions for job in _OF_RATES.values()])
    for case in cases:
        atoms, width = case.atoms, case.width
        arguments, described = sums(device, torch.float32, case)
        operations = 2 * atoms * parts.num_rows(described, 2) * width
        for precision in precisions:
            with rounded_to(precision), backend("triton"):
                for task, (places, second, times) in _OF_RATES.items():
                    run = functools.partial(_derivatives, waves, (arguments, described), places, second)
                    for way in ("", ", launched"):
                        row = Row("kernels", precision, task + way, 1, atoms, width, width)
                        try:
                            made = graphed(run) if device.type == "cuda" and not way else run
                            row.ms = median(made, device, repeats)
                            row.rate = 1e-6 * operations * times / row.ms
                        except Exception as error:  # of any compiler: the others are worth measuring
                            row.status = in_a_line(error)
                        yield row
