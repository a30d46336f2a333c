"""All contenders at one problem: memory and values first, the gate, then times in alternation."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import numpy as np

from benchmarks.contenders import missing
from benchmarks.problems import TASKS, Problem
from benchmarks.rows import Row
from benchmarks.worker import Failed, Worker

GATE = 1e-4  # largest difference over the largest value, float32

Values = dict[tuple[str, str], list[np.ndarray]]  # of contender and task


class Contest:
    """Runs problems one after the other and remembers what was too much for whom."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.failures: list[tuple[str, str, Problem]] = []

    def run(self, case: str, problem: Problem, contenders: list[str], operations: bool) -> list[Row]:
        """A row for every contender and task.

        Args:
            operations: count those of matrix products, too (torch only).
        """
        rows = [Row(case, name, task, **asdict(problem), status=missing(name)) for name in contenders for task in TASKS]
        values: Values = {}
        with self._workers(rows) as workers:
            for row in rows:
                self._measure(row, workers, values)
        gate(rows, values)
        with self._workers(rows) as workers:
            self._time([row for row in rows if not row.status], workers)
            for row in rows:
                count = self._try(row, workers, "operations") if operations and row.ms else None
                if count and row.ms:
                    row.rate = 1e-6 * count / row.ms
        return rows

    @contextmanager
    def _workers(self, rows: list[Row]) -> Iterator[dict[str, Worker]]:
        """Processes of those that take part; memory and time are taken in different ones."""
        names = dict.fromkeys(row.contender for row in rows if not row.status)
        memory = self.args.memory * 2**30
        workers = {name: Worker(name, rows[0].problem, self.args.threads, memory, self.args.seconds) for name in names}
        try:
            yield workers
        finally:
            for worker in workers.values():
                worker.stop()

    def _measure(self, row: Row, workers: dict[str, Worker], values: Values) -> None:
        """Memory and values of a task, or why it has none."""
        if row.status:
            return
        for contender, task, problem in self.failures:
            # what was too much for a task is too much for the tasks that contain it, and for larger problems
            if contender == row.contender and TASKS.index(task) <= TASKS.index(row.task) and row.problem.contains(problem):
                row.status = f"left out: {task} of {problem} atoms failed"
                return
        answer = self._try(row, workers, "measure")
        if answer:
            row.mib, values[row.contender, row.task] = answer[0] / 2**20, answer[1]

    def _try(self, row: Row, workers: dict[str, Worker], what: str, *arguments: Any) -> Any:
        """The worker's answer; nothing if it fails, and the row says why."""
        try:
            return workers[row.contender].ask(what, row.task, *arguments)
        except Failed as failed:
            row.status, row.ms, row.mib = str(failed), None, None
            self.failures.append((row.contender, row.task, row.problem))
            return None

    def _time(self, rows: list[Row], workers: dict[str, Worker]) -> None:
        """Least time of a call of each; a round is a fifth of a second for each, and slow ones have fewer rounds."""
        spent = [0.0] * len(rows)
        for turn in range(self.args.repeats):
            for i, row in enumerate(rows):
                if row.status or (turn > 0 and spent[i] > self.args.budget):
                    continue
                took = self._try(row, workers, "time", 0.0 if self.args.quick else 0.2)
                if took:
                    spent[i] += max(took, 0.2)
                    row.ms = min(1000 * took, row.ms or float("inf"))


def gate(rows: list[Row], values: Values) -> None:
    """Compares every contender with the first one that has values.

    Raises:
        SystemExit: they differ by more than `GATE`.
    """
    for row in rows:
        if (row.contender, row.task) not in values:
            continue
        first = next(values[other.contender, row.task] for other in rows if (other.contender, row.task) in values)
        pairs = zip(values[row.contender, row.task], first, strict=True)
        row.difference = float(np.max([np.abs(a - b).max() / np.abs(b).max() for a, b in pairs]))  # nan if one is
        if not row.difference <= GATE:
            raise SystemExit(
                f"gate: {row.contender} differs by {row.difference:.1e} in {row.task} of {row.problem!r}; "
                f"{GATE:.0e} is allowed. Nothing more is timed."
            )
