"""The cumulene torsion, from data to plot: a host with and without EFA, same data, same seed, same schedule.

A local model whose cutoff is 3 Å cannot know the angle between two CH2 groups 11 Å apart; attended directions can.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn

from efa_addons.studies import cumulene, hosts, report, results
from efa_addons.studies.runner import alone_in, ending_by_signals
from efa_addons.studies.runs import Run

# 13 atoms keep no more threads than this busy
MAX_THREADS = 4
# seconds between lines of progress where no bar can be drawn
REPORT_EVERY = 60


def run(
    folder: Path | str,
    host: str = "mace",
    quick: bool = False,
    seed: int = 0,
    variants: Sequence[hosts.Variant] | None = None,
) -> Path:
    """Makes the data, trains the variants, and writes table and plot; what is there already is not made again.

    Args:
        folder: where everything goes: data/ for all hosts, a folder for each host, and the report on all hosts found there.
        host: one of `hosts.NAMES`.
        quick: a minute's version of every step, in a subfolder quick/; its figures mean nothing.
        seed: of the data and of training.
        variants: of the host; none given: all.

    Returns:
        The folder of the report: table.md, table.csv, profile.png.
    """
    cumulene.require("tblite", "data")
    cumulene.require("matplotlib", "data")
    chosen = hosts.load(host)
    folder = Path(folder).resolve() / "quick" if quick else Path(folder).resolve()
    with alone_in(folder / host):
        return _run(folder, host, chosen, quick, seed, chosen.VARIANTS if variants is None else variants)


def _run(folder: Path, name: str, host: hosts.Host, quick: bool, seed: int, variants: Sequence[hosts.Variant]) -> Path:
    sizes = {"num_train": 12, "num_test": 6, "num_twists": 4} if quick else {}
    data = cumulene.make(folder / "data", seed=seed, **sizes)
    training = host.training(quick, seed)
    runs = [Run(host, variant, folder / name / variant.name, data, training) for variant in variants]
    train([run for run in runs if not run.is_finished()])
    found = results.HostResults(host.LABEL, tuple(results.evaluate(run, data) for run in runs))
    settings = {"seed": seed, "quick": quick, "runs": {run.variant.name: run.stamp for run in runs}}
    results.save(folder / name, found, data, settings)
    report.write(folder, data)
    Console().print(f"report: {folder}", soft_wrap=True, markup=False)
    return folder


def train(runs: Sequence[Run]) -> None:
    """Trains as many at once as there are cores; the first failure ends all."""
    if not runs:
        return
    cores = os.cpu_count() or 1
    parallel = min(cores, len(runs))
    threads = min(MAX_THREADS, max(1, cores // parallel))
    waiting = list(runs)
    active: dict[Run, subprocess.Popen] = {}
    said = time.monotonic()
    with ending_by_signals(), _progress() as progress:
        tasks = {run: progress.add_task(run.variant.label, total=run.num_epochs, start=False) for run in runs}
        # with EFA it takes longest: begun from the end of the list, the plain host fills the gap that remains
        try:
            while waiting or active:
                while waiting and len(active) < parallel:
                    run = waiting.pop()
                    active[run] = run.start(threads)
                    progress.start_task(tasks[run])
                time.sleep(1)
                _reap(active, tasks, progress)
                if not progress.console.is_terminal and time.monotonic() - said > REPORT_EVERY:
                    said = time.monotonic()
                    states = [f"{task.description}: {_state(task)}" for task in progress.tasks]
                    print("; ".join(states), flush=True)
        finally:
            for process in active.values():
                process.terminate()
                process.wait()


def _state(task: Task) -> str:
    return f"epoch {task.completed:.0f} of {task.total:.0f}" if task.started else "waiting"


def _reap(active: dict[Run, subprocess.Popen], tasks: dict[Run, TaskID], progress: Progress) -> None:
    """Shows how far the runs are and takes the finished ones out of `active`."""
    for run, process in list(active.items()):
        progress.update(tasks[run], completed=run.host.epochs_done(run.folder))
        code = process.poll()
        if code is not None:
            del active[run]
            run.finish(code)
            progress.update(tasks[run], completed=run.num_epochs)
            progress.stop_task(tasks[run])


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn()
    )
