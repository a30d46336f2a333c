"""What all benchmarks share: options, structures, timing in alternation, memory, and the table with its CSV file."""

from __future__ import annotations

import argparse
import csv
import platform
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from efa_addons.memory import PeakMemory
from efa_addons.studies.cost import droplet

if TYPE_CHECKING:  # the core's benchmarks need no ase
    from ase import Atoms


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


def clusters(quick: bool) -> list[list[Atoms]]:
    """Batches of clusters: one of molecules, one of a single droplet."""
    sizes = [(4, 2), (20, 1)] if quick else [(20, 16), (1000, 1)]
    return [[droplet(num_atoms, ("H", "C"), seed) for seed in range(num_graphs)] for num_atoms, num_graphs in sizes]


def largest_distance(structures: Sequence[Atoms]) -> float:
    """Å, between two atoms of the same structure."""
    return max(float(atoms.get_all_distances().max()) for atoms in structures)


def task(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], step: bool, energy: str, **options: bool
) -> Callable[[], None]:
    """One inference (energy and forces), or one training step (loss of both, backward).

    Args:
        step: a training step.
        energy: the host's name of the energy in the output.
        options: of the model's forward.
    """

    def run() -> None:
        out = model({key: value.clone() for key, value in batch.items()}, **options)
        if step:
            ((out[energy] ** 2).sum() + (out["forces"] ** 2).sum()).backward()

    return run


def peak_memory(run: Callable[[], None]) -> int:
    """Bytes of all tensors alive at the worst moment of a task; parameters, which are there before it, are not in it."""
    with PeakMemory() as memory:
        run()
    return memory.peak


def comparison(tasks: Sequence[Callable[[], None]], repeats: int) -> list[str]:
    """Time and memory without EFA, with it, and their ratios: six columns of a table with `columns`."""
    plain, efa = least(tasks, repeats)
    peaks = [peak_memory(run) / 2**20 for run in tasks]
    times = [f"{plain:.3f}", f"{efa:.3f}", f"{efa / plain:.2f}"]
    return [*times, f"{peaks[0]:.0f}", f"{peaks[1]:.0f}", f"{peaks[1] / peaks[0]:.2f}"]


def columns(host: str) -> list[str]:
    """The head of a table of `comparison`s."""
    return ["structures", "task", f"{host} (s)", "+ EFA (s)", "time ratio", f"{host} (MiB)", "+ EFA (MiB)", "memory ratio"]


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
