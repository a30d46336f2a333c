"""Everything that has to be measured on a GPU: `python -m benchmarks.gpu` checks Triton's kernels there, then times them.

Gate: at real sizes and in every precision the kernels' sums, first and second derivatives must agree with float64, or nothing
is timed. Then the card's own limits (matrix products, copies), what the kernels reach of them, the attention from 1000 to a
million atoms and in batches of molecules by each back end, the JAX reference and a MACE step where these are installed. Times
are the median over repetitions, memory the peak of torch's allocator over what was there before. One CSV file, named after the
card.

Without a GPU, that it runs: TRITON_INTERPRET=1 python -m benchmarks.gpu --quick --device cpu
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import REFERENCE, missing
from benchmarks.problems import TOLERANCE, Problem, arrays
from benchmarks.rows import Row, write_rows
from efa_addons import EFAConfig, EuclideanFastAttention
from efa_addons.ops import waves
from efa_addons.ops.backends import PRECISION, PRECISIONS, backend
from efa_addons.ops.grid import frequency_groups, make_grid

# Largest relative error of a sum, in the norm over all its elements.
LIMITS = {"tf32x3": 1e-5, "ieee": 1e-5, "tf32": 5e-3, "bf16": 4e-2}
WIDTHS = (32, 64, 128)  # D_qk = D_v of the kernels' rates
SIZES = (1_000, 10_000, 100_000, 1_000_000)
MOLECULES = ((64, 20), (1024, 20), (256, 100))  # graphs, and atoms of each
Sums = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that it runs, not how fast")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA device; without one: TRITON_INTERPRET=1, --quick --device cpu.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    path = args.out / f"gpu_{name.replace(' ', '_')}{'_quick' if args.quick else ''}.csv"
    rows: list[Row] = []
    for section in (gate, limits, rates, attention, mace_step):
        for row in section(device, args.quick, args.repeats):
            rows.append(row)
            print(_line(row), flush=True)
            write_rows(path, rows)
    print(path)


def _line(row: Row) -> str:
    sizes = f"{row.num_graphs} x {row.num_atoms} {row.width_qk}/{row.width_v}" if row.num_graphs else ""
    figures = [(row.ms, "ms"), (row.mib, "MiB"), (row.rate, "GFlop/s or GB/s"), (row.difference, "error")]
    return f"{row.case:10} {row.contender:20} {row.task:22} {sizes:18} " + ", ".join(
        [f"{value:.4g} {unit}" for value, unit in figures if value is not None] + [row.status] * bool(row.status)
    )


def _sums(device: torch.device, dtype: torch.dtype, atoms: int, width: int, degree: int) -> tuple[list[Any], waves.Waves]:
    """x, y, r, ω, T of one structure, with the grids of a phase of 10 π or less, and waves; mixed by the odd Y for degree 1."""
    torch.manual_seed(0)
    phases = torch.linspace(0, 10 * torch.pi, width // 2)
    grid = make_grid(frequency_groups(phases.tolist(), TOLERANCE, degree), [1.0] * (degree + 1))
    weights = grid.odd.to(device, dtype) if degree else None
    described = waves.Waves(
        grid.directions.to(device, dtype), weights, grid.num_directions, grid.num_channels,
        torch.zeros(1, dtype=torch.long, device=device), 1, True, degree == 1,
    )  # fmt: skip
    components = 1 if weights is None else weights.shape[1]
    shapes = [(1, 2, width // 2, atoms), (1, components, atoms, width), (1, 3, atoms)]
    x, y, r = (torch.randn(shape, device=device) for shape in shapes)
    state = torch.randn(1, waves.num_rows(described, 2), width, device=device)
    frequencies = phases.to(device) / 20.0  # 1/Å
    return [tensor.to(dtype) for tensor in (x, y, 4 * r, frequencies, state)], described


def gate(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """All five derivatives and all five second ones against the same sums in float64, part by part."""
    failed = []
    for atoms, width, degree in [(20, 4, 0)] if quick else [(4097, 64, 0), (20_001, 128, 0), (1000, 20, 1)]:
        exact = _derivatives("chunked", *_sums(device, torch.float64, atoms, width, degree))
        for precision in PRECISIONS[:1] if quick else PRECISIONS:
            with _precision(precision):
                found = _derivatives("triton", *_sums(device, torch.float32, atoms, width, degree))
            errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]
            worst = max(error if error == error else float("inf") for error in errors)
            yield Row("gate", precision, "ten derivatives", 1, atoms, width, width, degree, difference=worst)
            if worst > LIMITS[precision]:
                failed.append(f"{precision}, {atoms} atoms, width {width}, degree {degree}: {worst:.2g}")
    if failed:
        raise SystemExit("gate: the kernels are wrong, nothing is timed. " + "; ".join(failed))


def _derivatives(name: str, arguments: list[Any], described: waves.Waves) -> list[Any]:
    along = [torch.ones_like(tensor) for tensor in arguments]
    with backend(name):
        first = waves.partials(*arguments, described, [True] * 5)
        return [*first, *waves.second_partials(*arguments, described, along)]


def limits(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """Matrix products of the card's own library, and a copy."""
    n = 64 if quick else 8192
    for name, dtype, tf32 in (("fp32", torch.float32, False), ("TF32", torch.float32, True), ("bf16", torch.bfloat16, False)):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        ms = _median(lambda a=a, b=b: a @ b, device, repeats)
        yield Row("limits", "machine", f"{name} product", ms=ms, rate=2e-6 * n**3 / ms)
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.randn(2**16 if quick else 2**30, device=device)
    target = torch.empty_like(source)
    ms = _median(lambda: target.copy_(source), device, repeats)
    yield Row("limits", "machine", "copy", ms=ms, rate=2e-6 * source.nbytes / ms)


def rates(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """Each sum alone: 2 N R D_v operations, whatever the number of products that a precision makes of each."""
    needed = {"state": [4], "read-out": [1], "gradient": [0, 2], "all": [0, 1, 2, 3, 4]}
    for width in (4,) if quick else WIDTHS:
        atoms = 20 if quick else 65_536
        arguments, described = _sums(device, torch.float32, atoms, width, 0)
        operations = 2 * atoms * waves.num_rows(described, 2) * width
        for precision in PRECISIONS[:1] if quick else PRECISIONS:
            for task, places in needed.items():
                asked = [place in places for place in range(5)]
                with _precision(precision), backend("triton"):
                    ms = _median(lambda a=arguments, d=described, n=asked: waves.partials(*a, d, n), device, repeats)
                count = operations * (3 if task == "all" else 1)
                yield Row("kernels", precision, task, 1, atoms, width, width, ms=ms, rate=1e-6 * count / ms)
            along = [torch.ones_like(tensor) for tensor in arguments]
            with _precision(precision), backend("triton"):
                ms = _median(lambda a=arguments, d=described, v=along: waves.second_partials(*a, d, v), device, repeats)
            yield Row("kernels", precision, "second", 1, atoms, width, width, ms=ms, rate=1e-6 * 7 * operations / ms)


def attention(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """One module by each back end, and the reference: forward, forces, training step."""
    problems = [Problem(1, n, 64, 64) for n in SIZES] + [Problem(g, n, 32, 64) for g, n in MOLECULES]
    for problem in [Problem(1, 5, 4, 4), Problem(2, 3, 4, 4)] if quick else problems:
        for task in ("forward",) if quick else ("forward", "forces", "training"):
            sizes = dict(vars(problem))
            for name in ("triton", "chunked", "plain"):
                row = Row("attention", name, task, **sizes)
                with backend(name):
                    yield _measured(row, lambda p=problem, t=task: _task(p, t, device), device, repeats)
            row = Row("attention", REFERENCE, task, **sizes, status=missing(REFERENCE))
            if not row.status:
                row = _measured(row, lambda p=problem, t=task: _reference(p, t), device, repeats, of_torch=False)
            yield row


def _task(problem: Problem, task: str, device: torch.device) -> Sums:
    data = arrays(problem)
    torch.manual_seed(0)
    module = EuclideanFastAttention(
        problem.width_v, problem.degree, max_length=data.max_length, max_frequency=problem.max_frequency,
        method="quadrature", tolerance=TOLERANCE, num_features_qk=problem.width_qk,
    ).to(device)  # fmt: skip
    inputs, positions, batch, cotangent = (
        torch.from_numpy(part).to(device) for part in (data.inputs, data.positions, data.batch, data.cotangent)
    )

    def run() -> None:
        if task == "forward":
            with torch.no_grad():
                module(inputs, positions, batch, problem.num_graphs)
            return
        r = positions.clone().requires_grad_()
        energy = (module(inputs, r, batch, problem.num_graphs) * cotangent).sum()
        (gradient,) = torch.autograd.grad(energy, [r], create_graph=task == "training")
        if task == "training":
            torch.autograd.grad(energy.square() + gradient.square().sum(), list(module.parameters()))

    return run


def _reference(problem: Problem, task: str) -> Sums:
    from benchmarks.reference import jax_task

    return jax_task(problem, arrays(problem), task)


def mace_step(device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """MACE with and without EFA: inference and training step of 1000 atoms."""
    if importlib.util.find_spec("mace") is None:
        yield Row("MACE", "MACE", "inference", status="not installed")
        return
    from benchmarks.common import largest_distance, task
    from benchmarks.mace import stock_model
    from efa_addons.hosts.mace import insert_efa
    from efa_addons.hosts.mace.probe import batch_of
    from efa_addons.studies.cost import droplet

    structures = [droplet(5 if quick else 1000, ("H", "C"))]
    stock = stock_model(4 if quick else 64)
    efa = insert_efa(stock, EFAConfig(max_length=1.2 * largest_distance(structures), method="quadrature"))
    batch = {key: value.to(device) for key, value in batch_of(stock, structures).items()}
    for name, training in (("inference", False), ("training step", True)):
        for contender, model in (("MACE", stock), ("MACE with EFA", efa)):
            run = task(model.to(device), batch, training, "energy", training=training)
            yield _measured(Row("MACE", contender, name, 1, len(structures[0])), lambda run=run: run, device, repeats)


def _measured(row: Row, build: Callable[[], Sums], device: torch.device, repeats: int, of_torch: bool = True) -> Row:
    """With time and memory, or why not."""
    try:
        run = build()
        if device.type == "cuda" and of_torch:
            run()
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            run()
            row.mib = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        row.ms = _median(run, device, repeats)
    except (torch.OutOfMemoryError, MemoryError):
        row.status = "out of memory"
    except RuntimeError as error:  # jax's own, say: the others are worth measuring
        row.status = str(error).splitlines()[0][:100]
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row


def _median(run: Sums, device: torch.device, repeats: int) -> float:
    """Milliseconds of a call, the device waited for before and after; two calls warm up (Triton compiles in the first)."""
    times = []
    for number in range(repeats + 2):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        if number >= 2:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """Within it the kernels' products are rounded to this."""
    before = os.environ.get(PRECISION)
    os.environ[PRECISION] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[PRECISION]
        else:
            os.environ[PRECISION] = before


if __name__ == "__main__":
    main()
