"""What all benchmarks share: options, timing in alternation, and the table with its CSV file."""

from __future__ import annotations

import argparse
import csv
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def options(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """--repeats, --quick and --out; torch on one thread, with a seed."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that it runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser


def least(tasks: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Least process time (s) of each, in alternation, so that a busy machine disturbs all alike."""
    times = [float("inf")] * len(tasks)
    for _ in range(repeats):
        for i, run in enumerate(tasks):
            start = time.process_time()
            run()
            times[i] = min(times[i], time.process_time() - start)
    return times


def show(name: str, title: str, head: Sequence[str], rows: Sequence[Sequence[str]], args: argparse.Namespace) -> None:
    """Prints the table, and writes it to a CSV file with the hardware in its name."""
    table = Table(*head, title=title)
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"{name}_{platform.machine()}_cpu{'_quick' if args.quick else ''}.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    print(path)
