"""Evaluation of trained models on the cumulene data, and its results on disk, one file per host.

Energies meV or meV/atom, forces meV/Å; profiles eV.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from efa_addons.studies import cumulene, measures
from efa_addons.studies.evaluate import errors, predict, profile
from efa_addons.studies.hosts import NAMES
from efa_addons.studies.record import Profile
from efa_addons.studies.runs import Run, digest
from efa_addons.studies.sources.cumulenes import SCAN

FILE = "results.json"


@dataclass(frozen=True)
class Result:
    """What one model achieves. Energies meV/atom, forces meV/Å; scan meV, means aligned; seconds: training steps only."""

    name: str
    label: str
    kind: str
    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float
    scan_deviation: float
    barrier_error: float
    num_parameters: int
    seconds_per_epoch: float
    profile: Profile


@dataclass(frozen=True)
class HostResults:
    """The results of a host's variants."""

    label: str
    results: tuple[Result, ...]


def evaluate(run: Run, data: Path) -> Result:
    """Test errors and torsion profile of a finished run; `data` is a folder made by `cumulene.make`."""
    test, scan = cumulene.read(data, "test"), cumulene.read(data, "scan")
    dtype = torch.get_default_dtype()
    try:
        calculator, parameters = run.host.calculator(run.model)
        energies, forces = predict(calculator, [*test, *scan])
    finally:
        torch.set_default_dtype(dtype)  # calculators change it
    found = errors(test, energies[: len(test)], forces[: len(test)])
    torsion = profile(SCAN, [math.degrees(atoms.info[cumulene.TWIST]) for atoms in scan], scan, energies[len(test) :])
    return Result(
        name=run.variant.name,
        label=run.variant.label,
        kind=run.variant.kind,
        energy_mae=1e3 * found["energy_mae_per_atom"],
        energy_rmse=1e3 * found["energy_rmse_per_atom"],
        force_mae=1e3 * found["force_mae"],
        force_rmse=1e3 * found["force_rmse"],
        scan_deviation=1e3 * float(measures.deviations(torsion).max()),
        barrier_error=1e3 * measures.barrier_error(torsion),
        num_parameters=parameters,
        seconds_per_epoch=run.host.seconds_per_epoch(run.folder),
        profile=torsion,
    )


def save(folder: Path, found: HostResults, data: Path, settings: dict[str, Any] | None = None) -> None:
    """Writes results.json into the folder of a host, with a digest of `data` to tell results on other data from these."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings or {}, "data": _digest(data), **asdict(found)}
    (folder / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def collect(folder: Path, data: Path) -> tuple[list[HostResults], list[str]]:
    """Results of all hosts in `folder` on this data, in the order of `hosts.NAMES`; and the names of hosts with others.

    Others are on other data, or in the form of an earlier version.
    """
    found, outdated = [], []
    for name in NAMES:
        path = folder / name / FILE
        if not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        try:
            results = [Result(**{**entry, "profile": Profile.read(entry["profile"])}) for entry in content["results"]]
        except (KeyError, TypeError):  # fields that are missing, or no more
            results = []
        if results and content["data"] == _digest(data):
            found.append(HostResults(content["label"], tuple(results)))
        else:
            outdated.append(name)
    return found, outdated


def _digest(data: Path) -> str:
    return digest(b"".join((data / name).read_bytes() for name in cumulene.FILES))
