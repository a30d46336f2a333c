"""One measurement of `benchmarks.efa` and `benchmarks.gpu`, and the CSV file of all of them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from benchmarks.problems import Problem


@dataclass
class Row:
    """A contender at a task of a problem, or a limit of the machine or the conditions (then `task` says which).

    Args:
        ms, mib: wall time of a call, and largest memory over that before it; none where it failed. Of `benchmarks.efa` the
            least, and resident memory; on a GPU the median, and the allocator's.
        rate: operations of all matrix products over the time, GFlop/s; GB/s for the copy.
        difference: of all values from those of the first contender, over the largest one.
        status: why there are no figures, or nothing.
    """

    case: str
    contender: str
    task: str
    num_graphs: int = 0
    num_atoms: int = 0
    width_qk: int = 0
    width_v: int = 0
    degree: int = 0
    points: int = 0
    ms: float | None = None
    mib: float | None = None
    rate: float | None = None
    difference: float | None = None
    status: str = ""

    @property
    def problem(self) -> Problem:
        return Problem(self.num_graphs, self.num_atoms, self.width_qk, self.width_v, self.degree, self.points)


def in_a_line(error: BaseException) -> str:
    """Its kind and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in asdict(row).items()} for row in rows)


def read_rows(path: Path) -> list[Row]:
    def value(name: str, text: str) -> object:
        if name in ("case", "contender", "task", "status"):
            return text
        if name in ("ms", "mib", "rate", "difference"):
            return float(text) if text else None
        return int(text)

    with path.open(newline="") as file:
        return [Row(**{name: value(name, text) for name, text in line.items()}) for line in csv.DictReader(file)]


def find(rows: Iterable[Row], case: str, contender: str, task: str, problem: Problem) -> Row | None:
    """The row with figures, if there is one."""
    for row in rows:
        if (row.case, row.contender, row.task) == (case, contender, task) and row.problem == problem and row.ms:
            return row
    return None
