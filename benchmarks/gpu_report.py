"""Targets and tables of `benchmarks.gpu`, for the screen and for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_mace import CUEQ, E3NN, WITH
from benchmarks.report import TARGETS_HEAD, Grid, as_markdown, number, target_line
from benchmarks.rows import Row, find


def targets(rows: Sequence[Row]) -> Grid:
    """ "-" where something was not measured."""
    lines: list[list[str]] = []

    def add(*line: Any) -> None:
        lines.append(target_line(*line))

    limit = next((row.rate for row in rows if row.task == "TF32 product"), None)
    for row in rows:
        if row.case == "kernels" and row.contender == "tf32" and row.task in ("state", "read-out") and row.width_v >= 64:
            share = row.rate / limit if row.rate and limit else None
            add(f"{row.task}, D = {row.width_v}: share of the TF32 rate", "0.5", share, share is not None and share >= 0.5)
    for ours in [
        row for row in rows if row.case == "attention" and row.contender.startswith("triton") and row.task == "forces"
    ]:
        rounded = ours.contender.removeprefix("triton")  # on both sides, or on neither
        torchs = [find(rows, "attention", name + rounded, "forces", ours.problem) for name in ("plain", "chunked")]
        times = [row.ms for row in torchs if row is not None and row.ms]
        ratio = min(times) / ours.ms if ours.ms and times else None
        what = f"{ours.problem}, {ours.width_qk}/{ours.width_v}{rounded}: torch's faster way over triton, time"
        add(what, "5x", ratio, ratio is not None and ratio >= 5)
        if ours.num_atoms == 1_000_000 and not rounded:
            add("a million atoms with forces on one card: seconds", "runs", (ours.ms or 0) / 1e3 or None, bool(ours.ms))
    for name in (E3NN, CUEQ):
        steps = [
            next((r.ms for r in rows if (r.contender, r.task, r.num_graphs) == (which, "inference", 1)), None)
            for which in (name, name + WITH)
        ]
        added = steps[1] / steps[0] - 1 if steps[0] and steps[1] else None
        add(f"{name}, inference of 1000 atoms: what EFA adds", "0.1", added, added is not None and added <= 0.1)
    return "targets", TARGETS_HEAD, lines


def table(rows: Sequence[Row], case: str) -> Grid:
    """All rows of a case with what they have."""
    lines = []
    for row in rows:
        if row.case == case:
            sizes = [str(row.problem), f"{row.width_qk}/{row.width_v}"] if row.width_v else [str(row.problem), ""]
            figures = [row.ms, row.mib, row.rate, row.difference]
            cells = ["" if value is None else f"{value:.1e}" if value is row.difference else number(value) for value in figures]
            lines.append([row.contender, row.task, *(sizes if row.num_graphs else ["", ""]), *cells, row.status])
    return case, ["contender", "task", "structures", "widths", "ms", "MiB", "GFlop/s or GB/s", "error", ""], lines


def markdown(rows: Sequence[Row]) -> str:
    """The conditions, the targets, then all tables."""
    held = "; ".join(row.task for row in rows if row.case == "conditions")
    cases = [case for case in dict.fromkeys(row.case for row in rows) if case != "conditions"]
    return "\n\n".join([f"({held}.)", *map(as_markdown, [targets(rows), *(table(rows, case) for case in cases)])]) + "\n"
