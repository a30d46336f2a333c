"""The attention against its JAX reference: `python -m benchmarks.efa` (`tox -e bench` makes the environment).

Contenders, in one run and with the same weights, in float32: the reference under jit, a straightforward translation of it to
torch, efa_addons with its defaults, and efa_addons by quadrature alone; beside them the limits of the machine. The reference
has one grid; ours gets the largest phase that this grid serves, and the tolerance it serves it with. Gate: outputs, gradients
by positions and gradients of a training step must agree, or nothing more is timed. Each contender runs in a process of its own,
all on the same cores: wall times in alternation, and the growth of resident memory in one call. Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib.util import find_spec
from pathlib import Path

from benchmarks.common import options
from benchmarks.contenders import AUTO, CONTENDERS, QUADRATURE, missing
from benchmarks.contest import Contest
from benchmarks.machine import available, installed, limits, processor
from benchmarks.plots import plot_scaling
from benchmarks.problems import Problem
from benchmarks.profiles import profile
from benchmarks.report import insert, machine, markdown, show_table, tables
from benchmarks.rows import Row, read_rows, write_rows

CASES = {
    "batches": [Problem(16, 64), Problem(64, 20), Problem(256, 20)],
    "single": [Problem(1, 4**i, points=points) for points in (50, 194) for i in range(3, 9)],
    "widths": [Problem(1, 1024, width, width, degree) for degree in (0, 1) for width in (16, 32, 64, 128)],
    "rate": [Problem(1, atoms, 64, 64) for atoms in (4096, 16384, 65536)],
    "profile": [Problem(16, 64), Problem(256, 20), Problem(1, 4096), Problem(1, 4096, points=194)],
}
TARGETS = {
    "batches": [Problem(16, 64), Problem(256, 20)],
    "single": [Problem(1, 4096), Problem(1, 4096, points=194), Problem(1, 65536)],
    "rate": [Problem(1, 4096, 64, 64), Problem(1, 16384, 64, 64)],
    "profile": [Problem(1, 4096, 64, 64)],
}
QUICK = {
    "batches": [Problem(2, 5)],
    "single": [Problem(1, 4), Problem(1, 8)],
    "widths": [Problem(1, 4, 8, 8, 1)],
    "rate": [Problem(1, 8, 8, 8)],
    "profile": [Problem(2, 5)],
}


def arguments() -> argparse.Namespace:
    parser = options(__doc__, repeats=7)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--targets", action="store_true", help="only the problems that targets are about: ten minutes")
    parser.add_argument("--threads", type=int, default=2, help="and cores, for every contender")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds of timing for a contender at one task")
    parser.add_argument("--seconds", type=float, default=60.0, help="a contender that takes longer for a request is left out")
    parser.add_argument("--memory", type=float, help="GiB above which a contender is left out; else 0.6 of what is free")
    parser.add_argument("--from-csv", type=Path, metavar="CSV", help="measure nothing: tables and pictures of an earlier run")
    parser.add_argument("--docs", type=Path, metavar="DIR", help="tables into DIR/performance.md, plot into DIR/images")
    args = parser.parse_args()
    args.cases = [case for case in CASES if case in args.cases]
    if args.docs and args.cases != list(CASES):
        parser.error(
            f"--docs with --cases {' '.join(args.cases)}: the page has all cases; leave --cases out (--targets is less work)"
        )
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= args.threads <= len(cores):
        parser.error(f"--threads {args.threads}: there are {len(cores)} cores")
    os.sched_setaffinity(0, cores[: args.threads])  # every process started from here inherits it, XLA counts its threads by it
    os.environ["JAX_PLATFORMS"] = "cpu"
    args.memory = args.memory or 0.6 * available() / 2**30
    return args


def measure(args: argparse.Namespace, path: Path) -> list[Row]:
    """All rows; written after each problem, so that nothing is lost when a later one ends the run."""
    for name in CONTENDERS:
        if missing(name):
            print(f"{name}: {missing(name)}, the others go on without it (tox -e bench installs it)")
    found = limits(args.threads, args.quick)
    rows = [Row("conditions", "machine", conditions(args))]
    rows += [Row("machine", "machine", what, ms=1000 * took, rate=rate, status=unit) for what, took, rate, unit in found]
    show_table(machine(rows))
    contest = Contest(args)
    chosen = QUICK if args.quick else TARGETS if args.targets else CASES
    for case in [case for case in args.cases if case in chosen]:
        contenders = [QUADRATURE] if case == "rate" else list(CONTENDERS)
        for problem in chosen[case]:
            print(f"{case}: {problem!r}", file=sys.stderr, flush=True)
            if case == "profile":
                rows += profile(AUTO, problem, args.threads)
            else:
                rows += contest.run(case, problem, contenders, operations=case == "rate")
            write_rows(path, rows)
    return rows


def conditions(args: argparse.Namespace) -> str:
    """What the figures hold for; kept with them in the CSV file."""
    return f"{processor()}, {args.threads} threads, float32; {', '.join(installed('torch', 'jax', 'flax', 'e3x'))}"


def name(args: argparse.Namespace) -> str:
    """Of the files of a run: a part of it does not replace the whole."""
    part = [] if args.cases == list(CASES) else args.cases
    parts = ["efa", platform.machine(), "cpu", *["targets"] * args.targets, *part, *["quick"] * args.quick]
    return "_".join(parts)


def main() -> None:
    args = arguments()
    path = args.out / (args.from_csv.name if args.from_csv else f"{name(args)}.csv")
    rows = read_rows(args.from_csv) if args.from_csv else measure(args, path)
    held = next(row.task for row in rows if row.case == "conditions")
    for grid in tables(rows):
        show_table(grid)
    if not args.from_csv:
        print(path)
    args.out.mkdir(parents=True, exist_ok=True)
    if not find_spec("matplotlib"):
        print("no plots: matplotlib is not installed")
    elif any(row.case == "single" and row.ms for row in rows):
        pictures = [path.with_name(f"{path.stem}_scaling.png")]
        if args.docs:
            pictures.append(args.docs / "images" / "efa_scaling.png")
        for picture in pictures:
            plot_scaling(rows, picture, f"forward and position gradients, D_qk = 32, D_v = 64\n{held}".replace("; ", "\n"))
            print(picture)
    if args.docs:
        insert(args.docs / "performance.md", markdown(rows, f"({held}.)"))
        print(args.docs / "performance.md")


if __name__ == "__main__":
    main()
