"""The report on all hosts that have been trained: one table, and one plot with a panel for each host.

Energies of the table: meV or meV/atom; forces meV/Å. Plot: eV.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from efa_addons.studies import cumulene, measures, tables
from efa_addons.studies.drawing import LOOKS, MODEL, REFERENCE, Look, finish, panels
from efa_addons.studies.results import HostResults, Result, collect

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

# kind of variant -> its name in the legend, and its style
STYLES: dict[str, tuple[str, Look]] = {
    "plain": ("without EFA", LOOKS[0]),
    "efa": ("with EFA", LOOKS[1]),
    "scalar": ("with EFA of scalars only", LOOKS[2]),
}


def write(folder: Path, data: Path) -> None:
    """Prints the table; writes table.md, table.csv and profile.png into `folder`, from the results of all hosts in it.

    Args:
        folder: of the demonstration, with a folder for each host.
        data: that the hosts were trained on; what was trained on other data is left out.
    """
    found, outdated = collect(folder, data)
    for name in outdated:
        belongs = f"{folder / name} belongs to other data, or to an earlier version, and is left out"
        print(f"{belongs}: run the demonstration again with --host {name}.")
    results = [result for host in found for result in host.results]
    Console().print(rich_table(results))
    (folder / "table.md").write_text(markdown_table(results), encoding="utf-8")
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        names = [field.name for field in fields(Result) if field.name != "profile"]
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([getattr(result, name) for name in names] for result in results)
    plot(folder / "profile.png", found)


def rich_table(results: Sequence[Result]) -> Table:
    """The table for a terminal of 80 columns."""
    return tables.rich("cumulene torsion", list(COLUMNS), _rows(results))


def markdown_table(results: Sequence[Result]) -> str:
    """The same in Markdown."""
    return tables.markdown(list(COLUMNS), _rows(results))


def _rows(results: Sequence[Result]) -> list[list[str]]:
    return [[text(result) for text in COLUMNS.values()] for result in results]


def _short(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def plot(path: Path, found: Sequence[HostResults]) -> None:
    """Torsion profiles, a panel per host: the reference as a black line, every model shifted to the reference's mean."""
    figure, grid = panels([host.label for host in found])
    for axes, host in zip(grid[0], found, strict=True):
        shown = host.results[0].profile
        lowest = min(shown.reference)
        axes.plot(shown.x, np.array(shown.reference) - lowest, label=cumulene.METHOD, **REFERENCE)
        for result in host.results:
            label, look = STYLES[result.kind]
            axes.plot(shown.x, measures.aligned(result.profile) - lowest, label=label, **{**MODEL, **look})
        axes.set(xlim=(-3, 93), xticks=range(0, 91, 30 if len(found) > 1 else 15))
    grid[0, 0].set_ylabel(f"energy above the minimum of {cumulene.METHOD} (eV)")
    label = "twist of the two CH$_2$ groups of a cumulene, C$_9$H$_4$ (degrees)"
    finish(figure, label, columns=min(4, len(found) + 1)).savefig(path, dpi=160)
