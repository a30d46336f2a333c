"""A study from file to trainings: data, environments, and one process after the other until every cell has its record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from efa_addons.errors import EFAError, unknown_names
from efa_addons.studies import cumulene, forks, sources
from efa_addons.studies.environments import Environment, find, require_device
from efa_addons.studies.hosts import DISTRIBUTIONS, LABELS
from efa_addons.studies.record import CELLS, FILE, Record, write_whole
from efa_addons.studies.runs import split
from efa_addons.studies.study import Cell, Study
from efa_addons.studies.worker import JOB, LOG, PROGRESS, Job, elements
from efa_addons.version import __version__

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
WORKER = ("-m", "efa_addons.studies.worker")
REPORT_EVERY = 60  # seconds between lines of progress where no bar can be drawn
# of the settings, what a finished run is recognised by, beside data and versions
DECIDING = ("model", "training", "efa", "base", "dynamics", "cost", "device")
# of the record, what does not decide, and is the study's as it is now
TOLD = ("units", "title", "question", "literature", "variants", "host_label", "variant")


@dataclass(frozen=True, eq=False)
class Task:
    """A cell of a study, its folder, its job, and the Python that runs it."""

    cell: Cell
    folder: Path
    job: Job
    environment: Environment
    base: Task | None = None

    @property
    def label(self) -> str:
        return f"{self.cell.data.name}, {LABELS[self.cell.host]} {self.cell.variant.label}, seed {self.cell.seed}"

    @property
    def num_epochs(self) -> int:
        return int(self.job.record["settings"]["training"]["num_epochs"])

    def is_finished(self) -> bool:
        """Whether its folder has the record of a finished run with these settings, data, scans and versions."""
        path = self.folder / FILE
        if not path.exists():
            return False
        found, wanted = Record.read(path), self.job.record
        same = all(found.settings.get(key) == wanted["settings"][key] for key in DECIDING) and found.split == wanted["split"]
        scans = sources.scans(Path(self.job.data)).keys() & wanted["split"].keys()  # one without structures has no file
        versions = {"efa_addons": __version__, DISTRIBUTIONS[self.environment.host]: self.environment.version}
        return found.finished and same and found.profiles.keys() == scans and versions.items() <= dict(found.versions).items()

    @property
    def server(self) -> tuple[str, ...]:
        """The command of the process that can fork its worker; empty: none can."""
        host = self.environment.host
        return (str(self.environment.python), *WORKER, "--serve", host) if forks.possible(self.job.device) else ()

    @property
    def variables(self) -> dict[str, str]:
        threads = {name: str(self.job.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        return {**self.environment.variables, **threads}

    def start(self, server: forks.Server | None) -> subprocess.Popen | forks.Forked:
        """Its worker, by a server that runs, or else as a process of its own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (FILE, PROGRESS, LOG):
            (self.folder / name).unlink(missing_ok=True)
        self.job.save(self.folder)
        if server is not None:
            return server.start(self.folder)
        command = [str(self.environment.python), *WORKER, str(self.folder)]
        with (self.folder / LOG).open("w") as log:
            # a session of its own: `forks.stop` ends its training, too
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=self.variables, cwd=self.folder, start_new_session=True
            )

    def epochs_done(self) -> int:
        path = self.folder / PROGRESS
        text = path.read_text() if path.exists() else ""
        return int(text) if text.isdigit() else 0

    def finish(self, code: int, server: forks.Server | None) -> Record:
        """Its record; one is written where the worker died before it could, or the server before there was a worker."""
        if not (self.folder / FILE).exists():
            log = self.folder / LOG if server is None or (self.folder / LOG).exists() else server.log
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
            error = f"{' '.join(('worker', JOB))} ended with code {code}; end of {log}:\n{tail}"
            Record(**self.job.record, versions={}, hardware="", status="failed", error=error).save(self.folder)
        return Record.read(self.folder / FILE)

    def retell(self) -> None:
        """Brings the texts in a finished record to what the study says now."""
        record = Record.read(self.folder / FILE)
        now = {key: tuple(new) if isinstance(new, list) else new for key in TOLD for new in [self.job.record[key]]}
        changes: dict[str, Any] = {key: new for key, new in now.items() if new != getattr(record, key)}
        scans = json.loads((Path(self.job.data) / sources.SCANS).read_text())
        profiles = {name: replace(profile, scan=scans[name]) for name, profile in record.profiles.items()}
        if profiles != record.profiles:
            changes["profiles"] = profiles
        if changes:
            replace(record, **changes).save(self.folder)


def run(
    study: Study,
    out: Path | str = "studies-out",
    *,
    pythons: Mapping[str, Path] | None = None,
    hosts: Sequence[str] | None = None,
    device: str = "cpu",
    parallel: int | None = None,
) -> tuple[Path, list[Record]]:
    """Makes the data and trains every cell that has no finished record; returns the study's folder and all records.

    Args:
        study: as loaded.
        out: the study gets the folder `out/NAME/SIZE`, with data/ and a folder for each cell.
        pythons: host -> interpreter, in place of what `environments.find` finds.
        hosts: some of the study's; none given: all.
        device: "cpu" or "cuda".
        parallel: trainings at a time; none given: the number of cores, on a GPU one.
    """
    if parallel is not None and parallel < 1:
        raise EFAError(f"parallel, the number of trainings at a time, must be 1 or more, got {parallel}.")
    folder = Path(out).resolve() / study.name / study.size
    if hosts is not None and not {*hosts} & {*study.hosts}:
        raise EFAError(f"the study has the hosts {', '.join(study.hosts)}, and {', '.join(hosts)} is none of them.")
    with alone_in(folder):
        return _run(study, folder, pythons, hosts, device, parallel)


def _run(
    study: Study,
    folder: Path,
    pythons: Mapping[str, Path] | None,
    hosts: Sequence[str] | None,
    device: str,
    parallel: int | None,
) -> tuple[Path, list[Record]]:
    cells = [cell for cell in study.cells() if hosts is None or cell.host in hosts]
    environments = {host: find(host, pythons) for host in dict.fromkeys(cell.host for cell in cells)}
    for environment in environments.values():
        require_device(environment, device)
    cores = os.cpu_count() or 1
    parallel = parallel or (cores if device == "cpu" else 1)
    specs = {cell.data.name: cell.data for cell in cells}
    data = {name: sources.write(folder / "data" / name, spec.source, spec.options) for name, spec in specs.items()}
    _check_start(cells, data)
    _check_bases(cells, data)
    splits = {name: split(path) for name, path in data.items()}
    tasks: dict[str, Task] = {}
    for cell in cells:  # bases come first
        base = tasks[cell.base.name] if cell.base is not None else None
        job = Job(
            _known(study, device, cell, splits[cell.data.name], None if base is None else base.job.record),
            str(data[cell.data.name]),
            device,
            max(1, cores // parallel),
            None if base is None else str(base.folder),
        )
        tasks[cell.name] = Task(cell, folder / cell.name, job, environments[cell.host], base)
    write_whole(folder / CELLS, [cell.name for cell in study.cells()])
    waiting = [task for task in tasks.values() if not task.is_finished()]
    for task in tasks.values():
        if task not in waiting:
            task.retell()
    if len(waiting) < len(tasks):
        print(f"{len(tasks) - len(waiting)} of {len(tasks)} runs are finished already")
    if other := sum((task.folder / FILE).exists() and Record.read(task.folder / FILE).finished for task in waiting):
        print(f"{other} finished runs are of other settings, data, scans, versions or another device: they are made again")
    train(waiting, parallel, folder)
    return folder, [Record.read(task.folder / FILE) for task in tasks.values()]


def train(tasks: Sequence[Task], parallel: int, logs: Path) -> None:
    """Runs tasks, some at a time. One that fails is said, and the others go on. `logs`: the folder for those of servers."""
    waiting, active = list(tasks), dict[Task, subprocess.Popen | forks.Forked]()
    servers, serving = Servers(logs), dict[Task, forks.Server | None]()
    said, failed = time.monotonic(), 0
    with ending_by_signals(), _progress() as progress:
        total = progress.add_task("runs", total=len(tasks))
        bars: dict[Task, TaskID] = {}
        try:
            while waiting or active:
                while len(active) < parallel and (ready := [task for task in waiting if task.base not in {*waiting, *active}]):
                    task = ready[0]
                    waiting.remove(task)
                    serving[task] = servers.of(task)
                    active[task] = task.start(serving[task])
                    bars[task] = progress.add_task(task.label, total=task.num_epochs)
                time.sleep(0.5)
                for task, process in list(active.items()):
                    progress.update(bars[task], completed=task.epochs_done())
                    if (code := process.poll()) is None:
                        continue
                    del active[task]
                    progress.remove_task(bars.pop(task))
                    progress.advance(total)
                    record = task.finish(code, serving.pop(task))
                    if not record.finished:
                        failed += 1
                        progress.console.print(f"failed: {task.label}; see {task.folder / LOG}", soft_wrap=True, markup=False)
                if not progress.console.is_terminal and time.monotonic() - said > REPORT_EVERY:
                    said = time.monotonic()
                    print(f"{progress.tasks[0].completed:.0f} of {len(tasks)} runs, {failed} failed", flush=True)
        finally:
            servers.close()
            for process in active.values():
                if isinstance(process, subprocess.Popen):
                    forks.stop(process)


class Servers:
    """The processes that fork workers, one for each environment that has been asked for; one that died is replaced."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.started: dict[tuple[str, ...], forks.Server] = {}

    def of(self, task: Task) -> forks.Server | None:
        if not (command := task.server):
            return None
        if command in self.started and not self.started[command].alive():
            self.started.pop(command).close()
        if command not in self.started:
            self.started[command] = forks.Server(command, task.variables, self.logs / f"{task.environment.host}.log")
        return self.started[command]

    def close(self) -> None:
        for server in self.started.values():
            server.close()


def _check_start(cells: Sequence[Cell], data: Mapping[str, Path]) -> None:
    """That there is a structure where dynamics begin, before anything is trained."""
    for name, dynamics in {cell.data.name: cell.dynamics for cell in cells if cell.dynamics is not None}.items():
        folder = data[name]
        sets = sources.evaluation_sets(folder)
        if dynamics.set not in sets:
            raise unknown_names(f"evaluation set of {name} in dynamics", [dynamics.set], sets)
        structures = cumulene.read(folder, dynamics.set)
        number = len(structures)
        if not -number <= dynamics.index < number:
            raise EFAError(
                f"dynamics: index must be below {number}, the number in {name}'s set {dynamics.set}, got {dynamics.index}."
            )
        if len(structures[dynamics.index]) < 2:
            raise EFAError(
                f"dynamics: structure {dynamics.index} of {name}'s set {dynamics.set} is one atom: take another index."
            )


def _check_bases(cells: Sequence[Cell], data: Mapping[str, Path]) -> None:
    """That a base was trained on all elements of what goes on from it: hosts fail obscurely, or train on untrained weights.

    And one line on structures that it was trained on and that what goes on from it is evaluated on.
    """
    pairs = dict.fromkeys((cell.data.name, cell.base.data.name) for cell in cells if cell.base is not None)
    for name, base in pairs:
        trained, sets = cumulene.read(data[base], "train"), sources.read(data[name])
        found, known = elements(chain(*sets.values())), elements(trained)
        if unknown := [symbol for symbol in found if symbol not in known]:
            raise EFAError(
                f"data: {name}: has {', '.join(unknown)}; the training set of the study's base has {', '.join(known)} only. "
                f"Add structures to the base's data, or leave them out of {name}."
            )
        evaluated = {kind: structures for kind, structures in sets.items() if kind not in ("train", "valid")}
        sources.say_known(name, trained, evaluated, "the training set of the study's base")


def _known(study: Study, device: str, cell: Cell, split: Mapping[str, str], base: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is known of a cell's record before it is run; `base`: the same of the model that it goes on from."""
    return {
        "study": study.name,
        "size": study.size,
        "data": cell.data.name,
        "host": cell.host,
        "host_label": LABELS[cell.host],
        "variant": cell.variant.label,
        "seed": cell.seed,
        "units": study.units,
        "title": study.title,
        "question": study.question,
        "settings": json.loads(
            json.dumps(
                {
                    "model": asdict(cell.model),
                    "training": asdict(cell.training),
                    "efa": cell.variant.efa,
                    "base": None if base is None else {**base["settings"], "split": base["split"]},
                    "dynamics": asdict(cell.dynamics) if cell.dynamics else None,
                    "cost": asdict(cell.cost) if cell.cost else None,
                    "device": device,
                }
            )
        ),
        "split": dict(split),
        "literature": list(study.literature),
        "variants": [variant.label for variant in study.variants],
    }


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Within it no other process can have this folder of a study or demonstration: two would empty each other's.

    Raises:
        EFAError: another has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise EFAError(f"another process is at work in {folder}: wait for its end, or give another --out.") from error
        yield


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Within it SIGTERM and SIGHUP end this process as an exception does: trainings must not go on without it."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread()
    names = [name for name in ("SIGTERM", "SIGHUP") if ours and hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), end) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)


def _progress() -> Progress:
    text = TextColumn("{task.description}", markup=False)  # a label may have brackets
    return Progress(text, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(), console=Console())
