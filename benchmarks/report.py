"""Tables of `benchmarks.efa`: each case side by side, the targets, and the section of docs/performance.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.contenders import AUTO, CONTENDERS, QUADRATURE, REFERENCE
from benchmarks.problems import Problem
from benchmarks.rows import Row, find

Grid = tuple[str, list[str], list[list[str]]]  # title, head, lines
BEGIN, END = "<!-- figures of python -m benchmarks.efa: begin -->", "<!-- figures of python -m benchmarks.efa: end -->"
TITLES = {"ms": "milliseconds", "mib": "memory, MiB", "rate": "matrix products, GFlop/s"}


TARGETS_HEAD = ["what", "target", "measured", "met"]


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def target_line(name: str, target: str, value: float | None, met: bool) -> list[str]:
    """Of a table with `TARGETS_HEAD`; "-" where nothing was measured."""
    return [name, target, "-" if value is None else number(value), "-" if value is None else "yes" if met else "no"]


def as_markdown(grid: Grid) -> str:
    """With its title as a heading."""
    title, head, lines = grid
    body = ["| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *lines]]
    return "\n".join([f"### {title[0].upper()}{title[1:]}", "", *body])


def _cell(row: Row, first: Row | None, what: str) -> str:
    value = getattr(row, what)
    if value is None:
        return row.status or "-"
    base = getattr(first, what) if first else None
    return number(value) + (f" ({number(base / max(value, 1e-9))}x)" if base and row is not first else "")


def comparison(rows: Sequence[Row], case: str, what: str) -> Grid:
    """Problems and tasks downwards, contenders across; behind each figure how many times less than the reference it is."""
    chosen = [row for row in rows if row.case == case]
    names = [name for name in CONTENDERS if any(row.contender == name for row in chosen)]
    lines: dict[tuple[Problem, str], dict[str, Row]] = {}
    for row in chosen:
        lines.setdefault((row.problem, row.task), {})[row.contender] = row
    table = []
    for (problem, task), found in lines.items():
        first = found.get(REFERENCE) if what != "rate" else None
        widths = f"{problem.width_qk}/{problem.width_v}"
        cells = [_cell(found[name], first, what) if name in found else "" for name in names]
        table.append([str(problem), widths, str(problem.degree), str(problem.points), task, *cells])
    return f"{case}: {TITLES[what]}", ["structures", "widths", "degree", "points", "task", *names], table


def machine(rows: Sequence[Row]) -> Grid:
    lines = [[row.task, number(row.ms or 0), number(row.rate or 0), row.status] for row in rows if row.case == "machine"]
    return "machine: limits", ["limit", "ms", "rate", "unit"], lines


def profiles(rows: Sequence[Row]) -> Grid:
    lines = [
        [str(row.problem), str(row.points), row.task, number(row.ms or 0), number(row.rate or 0)]
        for row in rows
        if row.case == "profile"
    ]
    return "profile: forward and position gradients of efa_addons", ["structures", "points", "operation", "ms", "%"], lines


def targets(rows: Sequence[Row]) -> Grid:
    """Of the default, efa_addons, unless it says otherwise; "-" where something was not measured."""
    lines: list[list[str]] = []

    def ratio(name: str, target: float, case: str, problem: Problem, what: str) -> None:
        ours, theirs = (find(rows, case, contender, "forces", problem) for contender in (AUTO, REFERENCE))
        value = getattr(theirs, what) / max(getattr(ours, what), 1e-9) if ours and theirs else None
        lines.append(target_line(name, f"{target:.0f}x", value, value is not None and value >= target))

    ratio("16 x 64: reference over efa_addons, time", 30, "batches", Problem(16, 64), "ms")
    ratio("16 x 64: reference over efa_addons, memory", 30, "batches", Problem(16, 64), "mib")
    ratio("256 x 20: reference over efa_addons, time", 40, "batches", Problem(256, 20), "ms")
    for points in (50, 194):
        name = f"4096 atoms, {points} directions: reference over efa_addons, time"
        ratio(name, 3, "single", Problem(1, 4096, points=points), "ms")
    square = next((row.rate for row in rows if row.case == "machine"), None)
    rates = [row for row in rows if row.case == "rate" and row.contender == QUADRATURE and row.task == "forces" and row.rate]
    for row in rates:
        share = row.rate / square if row.rate and square else None
        name = f"{row.num_atoms} atoms, D = {row.width_v}, quadrature: share of the matrix-product rate"
        lines.append(target_line(name, "0.6", share, share is not None and share >= 0.6))
    small, large = (find(rows, "single", AUTO, "forces", Problem(1, atoms)) for atoms in (4096, 65536))
    growth = (large.ms / 16) / small.ms if small and large and small.ms and large.ms else None
    met = growth is not None and growth <= 1.15
    lines.append(target_line("time per atom at 65,536 atoms over that at 4096", "1.15", growth, met))
    return "targets: forward and position gradients", TARGETS_HEAD, lines


def tables(rows: Sequence[Row]) -> list[Grid]:
    """Everything that was measured."""
    cases = list(dict.fromkeys(row.case for row in rows if row.case not in ("conditions", "machine", "profile")))
    grids = [comparison(rows, case, what) for case in cases for what in ("ms", "mib")]
    rated = [comparison(rows, case, "rate") for case in cases if any(row.case == case and row.rate for row in rows)]
    return [grid for grid in [*grids, *rated, machine(rows), profiles(rows), targets(rows)] if grid[2]]


def show_table(grid: Grid) -> None:
    title, head, lines = grid
    table = Table(*head, title=title)
    for line in lines:
        table.add_row(*line)
    Console(width=160).print(table)


def markdown(rows: Sequence[Row], heading: str) -> str:
    """The targets first, then all tables; of large structures and widths the task "forces" alone."""
    parts = [heading]
    grids = tables(rows)
    for title, head, lines in [*grids[-1:], *grids[:-1]]:
        if title.startswith(("single", "widths")):
            lines = [line for line in lines if line[4] == "forces"]
        parts.append(as_markdown((title, head, lines)))
    return "\n\n".join(parts)


def insert(path: Path, text: str) -> None:
    """Puts the text between the two marks of a page."""
    page = path.read_text()
    if BEGIN not in page or END not in page:
        raise SystemExit(f"{path} needs the lines {BEGIN!r} and {END!r}, between which the figures go.")
    path.write_text(page.split(BEGIN)[0] + f"{BEGIN}\n\n{text}\n\n{END}" + page.split(END)[1])
