"""The cumulene torsion, from data to plot: MACE with and without EFA, same data, same seed, same schedule.

A local model whose cutoff is 3 Å cannot know the angle between two CH2 groups 11 Å apart; attended values of degree 2 can.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from efa_addons.errors import EFAError
from efa_addons.studies import cumulene, report
from efa_addons.version import __version__

COMMAND = (sys.executable, "-m", "efa_addons.hosts.mace.train")

# Flags of MACE, the same for every variant. Validation (and with it the choice of the final weights) happens in epochs that are
# multiples of eval_interval: one epoch more than that makes the last one count. The decay ends at 1.3 % of the learning rate.
TRAINING = [
    *("--model=ScaleShiftMACE", "--num_channels=16", "--max_L=2", "--max_ell=2", "--correlation=2", "--num_interactions=2"),
    *("--r_max=3.0", "--num_radial_basis=8", "--radial_MLP=[32,32]", "--E0s=average", "--default_dtype=float32"),
    *("--loss=weighted", "--energy_weight=10", "--forces_weight=100", "--batch_size=8", "--valid_batch_size=24"),
    *("--max_num_epochs=141", "--eval_interval=5", "--valid_fraction=0.1"),
    *("--lr=0.01", "--amsgrad", "--scheduler=ExponentialLR", "--lr_scheduler_gamma=0.9693", "--ema", "--ema_decay=0.99"),
    *("--device=cpu", "--num_workers=0", "--pin_memory=False", "--plot=False"),
]
QUICK = ["--num_channels=8", "--max_num_epochs=2", "--eval_interval=1", "--batch_size=4", "--valid_fraction=0.2"]

# 13 atoms keep no more threads than this busy
MAX_THREADS = 4
LOG_TAIL = 20
# seconds between lines of progress where no bar can be drawn
REPORT_EVERY = 60


@dataclass(frozen=True)
class Variant:
    """One model of the comparison: name of its folder, label in table and plot, flags in addition to TRAINING."""

    name: str
    label: str
    flags: tuple[str, ...] = ()


# unnormalised, as in the paper: at this small width it learns the far angle sooner
EFA = ("--efa", "--efa_normalization=1")
VARIANTS = (
    Variant("mace", "MACE"),
    Variant("mace_efa", "MACE + EFA", (*EFA, "--efa_max_degree_v=2")),
    Variant("mace_efa_scalar", "MACE + scalar EFA", (*EFA, "--efa_max_degree_v=0", "--efa_contraction=false")),
)


@dataclass(frozen=True)
class Run:
    """A variant's training in a folder of its own. `flags` excludes paths: they are what a finished run is recognised by."""

    variant: Variant
    folder: Path
    data: Path
    flags: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        name = self.variant.name
        return [*COMMAND, f"--name={name}", f"--work_dir={self.folder}", f"--train_file={self.data}/train.xyz", *self.flags]

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def num_epochs(self) -> int:
        return int([flag.partition("=")[2] for flag in self.flags if flag.startswith("--max_num_epochs=")][-1])

    @property
    def stamp(self) -> dict[str, Any]:
        """What decides the trained model."""
        digest = hashlib.sha256((self.data / "train.xyz").read_bytes()).hexdigest()
        return {"flags": list(self.flags), "data": digest, "efa_addons": __version__, "mace": version("mace-torch")}

    def is_finished(self) -> bool:
        stamp = self.folder / "stamp.json"
        trained = (self.folder / f"{self.variant.name}.model").exists()
        return trained and stamp.exists() and json.loads(stamp.read_text()) == self.stamp

    def start(self, threads: int) -> subprocess.Popen:
        """Empties the folder (MACE appends to results it finds) and starts training there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with self.log.open("w") as log:
            return subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def finish(self, code: int) -> None:
        """Marks the run as finished, or raises with the end of its log."""
        if code or not (self.folder / f"{self.variant.name}.model").exists():
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-LOG_TAIL:])
            raise EFAError(
                f"training {self.variant.label} failed with exit code {code}; end of {self.log}:\n{tail}\n"
                f"The command was:\n{' '.join(self.command)}"
            )
        (self.folder / "stamp.json").write_text(json.dumps(self.stamp, indent=2) + "\n")


def run(folder: Path | str, quick: bool = False, seed: int = 0, variants: Sequence[Variant] = VARIANTS) -> Path:
    """Makes the data, trains the variants, and writes table and plot; what is there already is not made again.

    Args:
        folder: where everything goes: data/, runs/ and the report.
        quick: a minute's version of every step, in a subfolder quick/; its figures mean nothing.
        seed: of the data and of training.

    Returns:
        The folder of the report: table.md, table.csv, results.json, profile.png.
    """
    cumulene.require("tblite", "data")
    cumulene.require("matplotlib", "data")
    cumulene.require("mace", "mace")
    folder = Path(folder).resolve() / "quick" if quick else Path(folder).resolve()
    sizes = {"num_train": 12, "num_test": 6, "num_twists": 4} if quick else {}
    data = cumulene.make(folder / "data", seed=seed, **sizes)
    flags = (*TRAINING, *(QUICK if quick else ()), f"--seed={seed}")
    runs = [Run(variant, folder / "runs" / variant.name, data, (*flags, *variant.flags)) for variant in variants]
    train([run for run in runs if not run.is_finished()])
    results = [report.evaluate(run.variant.name, run.variant.label, run.folder, data) for run in runs]
    settings = {"seed": seed, "quick": quick, "runs": {run.variant.name: run.stamp for run in runs}}
    report.write(folder, results, report.Profile.of(cumulene.read(data, "scan")), settings)
    Console().print(f"report: {folder}", soft_wrap=True)
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
    with _progress() as progress:
        tasks = {run: progress.add_task(run.variant.label, total=run.num_epochs, start=False) for run in runs}
        # MACE + EFA takes longest: begun from the end of the list, stock MACE fills the gap that remains
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
                    states = [f"{task.description}: epoch {task.completed:.0f} of {task.total:.0f}" for task in progress.tasks]
                    print("; ".join(states), flush=True)
        finally:
            for process in active.values():
                process.terminate()
                process.wait()


def _reap(active: dict[Run, subprocess.Popen], tasks: dict[Run, TaskID], progress: Progress) -> None:
    """Shows how far the runs are and takes the finished ones out of `active`."""
    for run, process in list(active.items()):
        progress.update(tasks[run], completed=report.epochs_done(run.folder))
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
