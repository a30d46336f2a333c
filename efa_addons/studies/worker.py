"""One training of a study, in the environment of its host: `python -m efa_addons.studies.worker FOLDER`.

FOLDER holds job.json, a `Job`; the host's own command trains there, and run.json is what comes out of it, of a failure, too.
`--serve HOST` in place of FOLDER does so for each folder that standard input names, see `forks`.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efa_addons.errors import EFAError
from efa_addons.studies import cumulene, forks, hosts, sources
from efa_addons.studies.cost import Cost, measure
from efa_addons.studies.dynamics import Dynamics, nve
from efa_addons.studies.evaluate import evaluate
from efa_addons.studies.record import FILE, Record
from efa_addons.studies.runs import Run
from efa_addons.studies.study import ModelSettings, TrainingSettings
from efa_addons.version import __version__

if TYPE_CHECKING:
    from ase import Atoms

JOB, PROGRESS, LOG = "job.json", "progress", "log.txt"
NAME, TRAINING = "model", "training"  # of the host's model, and the folder it is trained in
MEMORY = "peak-memory"  # beside the model, MiB
POLL = 0.5  # s


@dataclass(frozen=True)
class Job:
    """A training, and what its record says of the study.

    Args:
        record: the fields of `Record` that are known before: study, size, data, host, variant, seed, …, settings and split.
        data: the folder of the data set.
        device: "cpu" or "cuda"; of the evaluation, too.
        threads: of torch.
        base: the folder of the job whose model is trained further; none: from scratch.
    """

    record: dict[str, Any]
    data: str
    device: str
    threads: int
    base: str | None = None

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOB).write_text(json.dumps(asdict(self), indent=1) + "\n")


def run(folder: Path, forked: bool = False) -> Record:
    """Trains, evaluates and writes run.json; `forked`: the training is a fork of this process."""
    start = time.monotonic()
    job = Job(**json.loads((folder / JOB).read_text()))
    host = hosts.load(job.record["host"])
    known = {**job.record, "versions": versions(host), "hardware": hardware(job)}
    found: dict[str, Any] = {}
    outcome = {"status": "finished"}
    try:
        for part in _train_and_evaluate(job, host, folder, forked):
            found |= part
    except Exception as error:  # whatever a host does: it is said in the record, with what there was, and the study goes on
        traceback.print_exc()
        outcome = {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    record = Record(**{**known, **found, **outcome})
    record = dataclasses.replace(record, seconds={**record.seconds, "total": time.monotonic() - start})
    record.save(folder)
    return record


def _train_and_evaluate(job: Job, host: hosts.Host, folder: Path, forked: bool) -> Iterator[dict[str, Any]]:
    """Fields of the record, as they are known."""
    settings, data = job.record["settings"], Path(job.data)
    model, training = ModelSettings(**settings["model"]), TrainingSettings(**settings["training"])
    # MACE leaves out a batch that is not full, the others take it: of a smaller set all hosts make one batch
    training = dataclasses.replace(training, batch_size=min(training.batch_size, len(cumulene.read(data, "train"))))
    base = None
    if job.base is not None:
        base = host.model_file(NAME, Path(job.base) / TRAINING)
        # a training that failed leaves half-trained models behind
        if not Record.read(Path(job.base) / FILE).finished:
            raise EFAError(f"there is no model to go on from: its training failed, see {job.base}.")
        if not base.exists():
            raise EFAError(f"there is no model to go on from: {base} is gone. Remove {job.base}, and run the study again.")
    symbols = elements(chain(*sources.read(data).values()))
    flags = host.settings(model, training, settings["efa"], job.record["seed"], symbols, job.device, base)
    run = Run(host, hosts.Variant(NAME, job.record["variant"], "study"), folder / TRAINING, data, flags, base)
    memory = run.folder / MEMORY
    if not (run.is_finished() and memory.exists()):  # an evaluation that was interrupted has its training already
        process = run.fork(job.threads) if forked else run.start(job.threads)
        while (code := process.poll()) is None:
            (folder / PROGRESS).write_text(str(host.epochs_done(run.folder)))
            time.sleep(POLL)
        run.finish(code)
        memory.write_text(str(peak_memory()))
    yield {
        "seconds": {"training": host.seconds_per_epoch(run.folder) * training.num_epochs},
        "peak_memory": float(memory.read_text()),
        "curve": tuple(host.curve(run.folder)),
        "settings": {**settings, "command": run.command},
    }
    calculator, parameters = host.calculator(run.model, job.device)
    metrics, profiles = evaluate(calculator, data)
    yield {"num_parameters": parameters, "metrics": metrics, "profiles": profiles}
    if settings["dynamics"] is not None:
        dynamics = Dynamics(**settings["dynamics"])
        if dynamics.wanted(*(job.record[key] for key in ("host", "variant", "seed"))):
            yield {"dynamics": nve(calculator, cumulene.read(data, dynamics.set)[dynamics.index], dynamics)}
    if settings["cost"] is not None:
        yield {"cost": measure(calculator, Cost(**settings["cost"]), symbols, job.device)}


def elements(structures: Iterable[Atoms]) -> list[str]:
    """Symbols of all that occurs in structures, in the order of their numbers."""
    from ase.data import chemical_symbols

    return [chemical_symbols[number] for number in sorted({int(number) for atoms in structures for number in atoms.numbers})]


def peak_memory() -> float:
    """MiB, the largest resident set of a process that this one has waited for."""
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2 ** (20 if sys.platform == "darwin" else 10)


def versions(host: hosts.Host) -> dict[str, str]:
    return {
        "efa_addons": __version__,
        host.DISTRIBUTION: version(host.DISTRIBUTION),
        **{name: version(name) for name in ("torch", "e3nn")},
        "python": platform.python_version(),
    }


def hardware(job: Job) -> str:
    """One line on the device."""
    if job.device != "cpu":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {job.threads} thread{'s' if job.threads > 1 else ''}"


def main(folder: Path, forked: bool = False) -> int:
    """The exit code of a run."""
    torch.set_num_threads(1)
    return 0 if run(folder.resolve(), forked).finished else 1


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        name = sys.argv[2]
        modules = (*hosts.IMPORTED[name], f"{hosts.__name__}.{name}")
        forks.serve(functools.partial(main, forked=True), LOG, modules)
    else:
        sys.exit(main(Path(sys.argv[1])))
