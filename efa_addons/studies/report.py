"""Evaluation of trained models on the cumulene data, and the report: one table and one plot.

Energies of table and files: meV or meV/atom; forces meV/Å. Profiles: eV.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from efa_addons.studies import cumulene

if TYPE_CHECKING:
    from ase import Atoms


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
    energy_mae: float
    energy_rmse: float
    force_mae: float
    force_rmse: float
    scan_deviation: float
    barrier_error: float
    num_parameters: int
    seconds_per_epoch: float
    profile: Profile


# column of the table (lines of its head) -> how to write a Result in it
COLUMNS = {
    ("model",): lambda r: r.label,
    ("energy", "MAE / RMSE", "meV/atom"): lambda r: f"{_short(r.energy_mae)} / {_short(r.energy_rmse)}",
    ("force", "MAE / RMSE", "meV/Å"): lambda r: f"{r.force_mae:.0f} / {r.force_rmse:.0f}",
    ("scan", "max. dev.", "meV"): lambda r: f"{r.scan_deviation:.0f}",
    ("barrier", "error", "meV"): lambda r: f"{r.barrier_error:+.0f}",
    ("para-", "meters"): lambda r: f"{r.num_parameters:,}",
    ("s per", "epoch"): lambda r: f"{r.seconds_per_epoch:.1f}",
}

# Okabe-Ito colours, told apart by line and marker, too
STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#009E73", "marker": "^", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "D", "linestyle": "-."},
)


def evaluate(name: str, label: str, run: Path, data: Path) -> Result:
    """Test errors and torsion profile of the model `run`/`name`.model; `data` is a folder made by `cumulene.make`."""
    test, scan = cumulene.read(data, "test"), cumulene.read(data, "scan")
    energies, forces, parameters = _predict(run / f"{name}.model", [*test, *scan])
    wanted = np.array([atoms.info[cumulene.ENERGY] for atoms in test])
    sizes = np.array([len(atoms) for atoms in test])
    energy_error = 1e3 * (energies[: len(test)] - wanted) / sizes
    force_error = 1e3 * np.concatenate(
        [found - atoms.arrays[cumulene.FORCES] for found, atoms in zip(forces, test, strict=False)]
    )
    reference, profile = Profile.of(scan), Profile.of(scan, energies[len(test) :])
    return Result(
        name=name,
        label=label,
        energy_mae=_mae(energy_error),
        energy_rmse=_rmse(energy_error),
        force_mae=_mae(force_error),
        force_rmse=_rmse(force_error),
        scan_deviation=1e3 * profile.largest_deviation(reference),
        barrier_error=1e3 * (profile.barrier - reference.barrier),
        num_parameters=parameters,
        seconds_per_epoch=seconds_per_epoch(run),
        profile=profile,
    )


def write(folder: Path, results: Sequence[Result], reference: Profile, settings: dict[str, Any] | None = None) -> None:
    """Prints the table; writes table.md, table.csv, results.json and profile.png into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    Console().print(rich_table(results))
    (folder / "table.md").write_text(markdown_table(results), encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(Result) if field.name != "profile"]
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(result, name) for name in names] for result in results)
    content = {"settings": settings or {}, "reference": asdict(reference), "results": [asdict(r) for r in results]}
    (folder / "results.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    plot(folder / "profile.png", results, reference)


def rich_table(results: Sequence[Result]) -> Table:
    """The table for a terminal of 80 columns."""
    table = Table(title="cumulene torsion", box=SIMPLE, collapse_padding=True, pad_edge=False)
    for i, head in enumerate(COLUMNS):
        table.add_column("\n".join(head), justify="right" if i else "left", no_wrap=True)
    for result in results:
        table.add_row(*(text(result) for text in COLUMNS.values()))
    return table


def markdown_table(results: Sequence[Result]) -> str:
    """The same in Markdown."""
    rows = [[" ".join(head).replace("- ", "") for head in COLUMNS], ["---"] + ["---:"] * (len(COLUMNS) - 1)]
    rows += [[text(result) for text in COLUMNS.values()] for result in results]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def plot(path: Path, results: Sequence[Result], reference: Profile) -> None:
    """Torsion profiles: the reference as a black line, every model shifted to the reference's mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(reference.twists, reference.aligned(reference), color="black", linewidth=2.5, label=cumulene.METHOD)
    for i, result in enumerate(results):
        style = {"linewidth": 1.6, "markersize": 5.5, "markerfacecolor": "white", **STYLES[i % len(STYLES)]}
        axes.plot(result.profile.twists, result.profile.aligned(reference), label=result.label, **style)
    axes.set(xlabel="twist of the two CH$_2$ groups (degrees)", ylabel=f"energy above the minimum of {cumulene.METHOD} (eV)")
    axes.set(title="Torsion of a cumulene, C$_9$H$_4$", xlim=(-2, 92), xticks=range(0, 91, 15))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="means aligned")
    figure.savefig(path, dpi=160)


def epochs_done(run: Path) -> int:
    """Number of epochs that a run has finished so far."""
    last = max((entry["epoch"] for entry in _entries(run)), default=0)
    return int(last)


def seconds_per_epoch(run: Path) -> float:
    """Mean wall time (s) of an epoch's training steps."""
    entries = _entries(run)
    epochs = {entry["epoch"] for entry in entries}
    return sum(entry["time"] for entry in entries) / len(epochs) if epochs else float("nan")


def _entries(run: Path) -> list[dict[str, Any]]:
    """MACE's records of training steps: JSON lines with epoch and time; a line being written is left out."""
    entries = []
    for path in run.glob("results/*_train.txt"):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("mode") == "opt":
                entries.append(entry)
    return entries


def _predict(model: Path, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray], int]:
    """Energies (eV), forces (eV/Å) and the model's number of parameters; in float64, so that profiles carry no noise."""
    import torch
    from mace.calculators import MACECalculator

    dtype = torch.get_default_dtype()
    try:
        trained = torch.load(model, map_location="cpu", weights_only=False).double()
        calculator = MACECalculator(models=trained, device="cpu", default_dtype="float64")
        energies, forces = [], []
        with cumulene.one_thread():
            for atoms in structures:
                calculator.calculate(atoms, properties=["energy", "forces"])
                energies.append(calculator.results["energy"])
                forces.append(calculator.results["forces"])
    finally:
        torch.set_default_dtype(dtype)  # MACECalculator changes it
    return np.array(energies), forces, sum(p.numel() for p in trained.parameters())


def _mae(errors: np.ndarray) -> float:
    return float(np.abs(errors).mean())


def _rmse(errors: np.ndarray) -> float:
    return float(np.sqrt((errors**2).mean()))
