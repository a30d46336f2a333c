"""Evaluation of trained models on the cumulene data, and its results on disk, one file per host.

Energies meV or meV/atom, forces meV/Å; profiles eV.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efa_addons.studies import cumulene
from efa_addons.studies.common import one_thread
from efa_addons.studies.hosts import NAMES
from efa_addons.studies.runs import Run, digest

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

FILE = "results.json"


@dataclass(frozen=True)
class Profile:
    """A torsion profile: twists (degrees, from 0 to 90) and energies (eV)."""

    twists: tuple[float, ...]
    energies: tuple[float, ...]

    @classmethod
    def of(cls, scan: Sequence[Atoms], energies: Sequence[float] | np.ndarray | None = None) -> Profile:
        """The profile of labelled structures, or of others' energies for them."""
        if energies is None:
            energies = [atoms.info[cumulene.ENERGY] for atoms in scan]
        return cls(tuple(float(np.degrees(atoms.info[cumulene.TWIST])) for atoms in scan), tuple(map(float, energies)))

    @property
    def barrier(self) -> float:
        """E(0°) - E(90°), eV."""
        return self.energies[0] - self.energies[-1]

    def aligned(self, reference: Profile) -> np.ndarray:
        """Energies (eV) relative to the reference's minimum, shifted to the reference's mean."""
        return np.array(self.energies) - np.mean(self.energies) + np.mean(reference.energies) - min(reference.energies)

    def largest_deviation(self, reference: Profile) -> float:
        """eV, means aligned."""
        return float(np.abs(self.aligned(reference) - reference.aligned(reference)).max())


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
    wanted = np.array([atoms.info[cumulene.ENERGY] for atoms in test])
    sizes = np.array([len(atoms) for atoms in test])
    energy_error = 1e3 * (energies[: len(test)] - wanted) / sizes
    force_error = 1e3 * np.concatenate(
        [found - atoms.arrays[cumulene.FORCES] for found, atoms in zip(forces, test, strict=False)]
    )
    reference, profile = Profile.of(scan), Profile.of(scan, energies[len(test) :])
    return Result(
        name=run.variant.name,
        label=run.variant.label,
        kind=run.variant.kind,
        energy_mae=_mae(energy_error),
        energy_rmse=_rmse(energy_error),
        force_mae=_mae(force_error),
        force_rmse=_rmse(force_error),
        scan_deviation=1e3 * profile.largest_deviation(reference),
        barrier_error=1e3 * (profile.barrier - reference.barrier),
        num_parameters=parameters,
        seconds_per_epoch=run.host.seconds_per_epoch(run.folder),
        profile=profile,
    )


def save(folder: Path, found: HostResults, data: Path, settings: dict[str, Any] | None = None) -> None:
    """Writes results.json into the folder of a host, with a digest of `data` to tell results on other data from these."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings or {}, "data": _digest(data), **asdict(found)}
    (folder / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def collect(folder: Path, data: Path) -> tuple[list[HostResults], list[str]]:
    """Results of all hosts in `folder` on this data, in the order of `hosts.NAMES`; and the names of hosts with other data."""
    found, outdated = [], []
    for name in NAMES:
        path = folder / name / FILE
        if not path.exists():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["data"] == _digest(data):
            found.append(HostResults(content["label"], tuple(_result(entry) for entry in content["results"])))
        else:
            outdated.append(name)
    return found, outdated


def _result(entry: dict[str, Any]) -> Result:
    profile = Profile(*(tuple(entry["profile"][name]) for name in ("twists", "energies")))
    return Result(**{**entry, "profile": profile})


def _digest(data: Path) -> str:
    return digest(b"".join((data / name).read_bytes() for name in cumulene.FILES))


def predict(calculator: Calculator, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies (eV) and forces (eV/Å) of structures, one by one."""
    energies, forces = [], []
    with one_thread():
        for atoms in structures:
            calculator.calculate(atoms, properties=["energy", "forces"])
            energies.append(float(calculator.results["energy"]))
            forces.append(np.array(calculator.results["forces"]))
    return np.array(energies), forces


def _mae(errors: np.ndarray) -> float:
    return float(np.abs(errors).mean())


def _rmse(errors: np.ndarray) -> float:
    return float(np.sqrt((errors**2).mean()))
