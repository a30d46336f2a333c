"""Pictures of a study: learning curves, scans, and errors over a number in the names of data. Energies eV, forces eV/Å.

Lines are means over seeds, bands reach from the lowest to the highest seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efa_addons.studies import measures
from efa_addons.studies.columns import wall_limits
from efa_addons.studies.drawing import REFERENCE, Look, draw_line, finish, logarithmic, panels, ticks
from efa_addons.studies.grouping import Row, Section, Table, natural, numbered
from efa_addons.studies.record import Profile, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Looks = Mapping[str, Look]
Quantity = Callable[[Record, str], float | None]  # of a run and an evaluation set; none: it has no such value
Numbered = Mapping[int, tuple[Table, str]]  # number -> where it comes from: a data set, and one of its evaluation sets


def draw(folder: Path, section: Section, looks: Looks) -> dict[str, list[Path]]:
    """Writes all pictures of a study; data set -> its pictures, "" -> those that compare data sets."""
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, list[Path]] = {}
    names: list[str] = []
    for data, what, figure in figures(section, looks):
        parts = (section.study, section.size, data, what)
        names.append("-".join(re.sub(r"[^\w.]+", "-", part) for part in parts if part))
        again = names.count(names[-1])  # a set may be called as another picture is
        path = folder / f"{names[-1]}{f'-{again}' if again > 1 else ''}.png"
        figure.savefig(path, dpi=160)
        result.setdefault(data, []).append(path)
    return result


def figures(section: Section, looks: Looks) -> Iterator[tuple[str, str, Figure]]:
    """Data set ("": several), what is shown, and the figure."""
    for table in section.tables:
        for name in _scans(table):
            yield table.data, name, scan(table, name, looks)
        for prefix, members in numbered(_evaluated(table)).items():
            source = {number: (table, name) for number, name in members.items()}
            yield table.data, f"{prefix}-by-number", by_number(source, f"N of {_range(members)}", looks)
        if any(record.dynamics for record in table.finished):
            yield table.data, "dynamics", dynamics(table, looks)
        if any(record.cost for record in table.finished):
            yield table.data, "cost", cost(table, looks)
        if any(record.curve for record in table.finished):
            yield table.data, "epochs", learning_curves(table, "epoch", looks)
            yield table.data, "seconds", learning_curves(table, "seconds", looks)
    tables = {table.data: table for table in section.tables if table.finished}
    for prefix, members in numbered(tables).items():
        chosen = {number: tables[name] for number, name in members.items()}
        for name in sorted(set.intersection(*(set(_evaluated(table)) for table in chosen.values())), key=natural):
            source = {number: (table, name) for number, table in chosen.items()}
            yield "", f"{prefix}-{name}-by-number", by_number(source, f"N of {_range(members)} ({name})", looks)


def learning_curves(table: Table, x: str, looks: Looks) -> Figure:
    """Validation errors over `x`, "epoch" or "seconds" (of training steps, mean over seeds)."""
    figure, grid = panels(list(table.hosts.values()), 2, height=3.4)
    for row, column in _columns(table, grid):
        curves = [record.curve for record in row.finished if record.curve]
        length = min(map(len, curves), default=0)
        for axes, key in zip(column, ("energy_mae", "force_mae"), strict=True):
            if length:
                at = np.mean([[entry[x] for entry in curve[:length]] for curve in curves], axis=0)
                values = np.array([[entry[key] for entry in curve[:length]] for curve in curves])
                draw_line(axes, at, values.T, row.variant, looks[row.variant])
                logarithmic(axes)
    if x == "seconds":
        for host, (_, seconds) in wall_limits(table).items():
            for axes in grid[:, list(table.hosts).index(host)]:
                axes.axvline(seconds, color="0.6", linewidth=1, zorder=0, label="equal time")
    grid[0, 0].set_ylabel(f"validation energy MAE{_unit(table, 'eV')}")
    grid[1, 0].set_ylabel(f"validation force MAE{_unit(table, 'eV/Å')}")
    return finish(figure, "epoch" if x == "epoch" else "seconds of training")


def scan(table: Table, name: str, looks: Looks) -> Figure:
    """The reference and the models, aligned; where a power law is sought, its tail in double logarithms, too."""
    shown = next(record.profiles[name] for record in table.finished if name in record.profiles)
    decay = shown.scan.get("analysis") == "power_law" and bool(measures.in_tail(shown).any())
    reference = np.array(shown.reference)
    zero, above = _zero(shown)
    figure, grid = panels(list(table.hosts.values()), 2 if decay else 1, height=3.4 if decay else 4.2)
    for column in grid.T:
        column[0].plot(shown.x, reference - zero, label="reference", **REFERENCE)
        if decay:
            inside = np.array(shown.x)[measures.in_tail(shown)]
            column[0].axvspan(inside.min(), inside.max(), color="0.95", zorder=0)
            _draw_decay(column[1], [shown], [shown.reference], "reference", {**REFERENCE, "marker": ""})
    for row, column in _columns(table, grid):
        found = [record.profiles[name] for record in row.finished if name in record.profiles]
        if found:
            values = np.array([measures.aligned(profile) for profile in found]) - zero
            draw_line(column[0], np.array(shown.x), values.T, row.variant, looks[row.variant])
        if decay:
            _draw_decay(column[1], found, [profile.energies for profile in found], row.variant, looks[row.variant])
    bottom, top = grid[0, 0].get_ylim()
    low, high = (reference - zero).min(), (reference - zero).max()
    margin = high - low  # a model that is further off leaves the panel: it would hide the others
    grid[0, 0].set_ylim(max(bottom, low - margin), min(top, high + margin))
    grid[0, 0].set_ylabel(f"energy{above}{_unit(table, 'eV')}")
    if decay:
        _frame_decay(grid[1], shown)
        grid[1, 0].set_ylabel(f"|E - E$_0$| in the tail{_unit(table, 'eV')}")
    return finish(figure, shown.scan["label"])


def dynamics(table: Table, looks: Looks) -> Figure:
    """Total energy against time, of the first seed that ran."""
    figure, grid = panels(list(table.hosts.values()), height=3.4)
    for row, column in _columns(table, grid):
        for record in [record for record in row.finished if record.dynamics][:1]:
            draw_line(
                column[0], record.dynamics["time"], [[e] for e in record.dynamics["energy"]], row.variant, looks[row.variant]
            )
    grid[0, 0].set_ylabel(f"total energy per atom, first point at 0{_unit(table, 'eV')}")
    return finish(figure, "time (ps)")


def cost(table: Table, looks: Looks) -> Figure:
    """Time and memory of a call against the number of atoms."""
    figure, grid = panels(list(table.hosts.values()), 2, height=3.4)
    for row, column in _columns(table, grid):
        costs = [record.cost for record in row.finished if record.cost]
        for axes, key in zip(column, ("seconds", "memory"), strict=True):
            if costs:
                shared = min(len(of["num_atoms"]) for of in costs)  # one may have run out of memory earlier
                values = np.array([of[key][:shared] for of in costs])
                draw_line(axes, costs[0]["num_atoms"][:shared], values.T, row.variant, looks[row.variant])
                logarithmic(axes, x=True)
    grid[0, 0].set_ylabel("energy and forces (s)")
    grid[1, 0].set_ylabel("memory (MiB)")
    return finish(figure, "atoms")


def by_number(source: Numbered, label: str, looks: Looks) -> Figure:
    """Errors over a number: of scans their largest deviation and barrier; where any is none, energies per atom and forces."""
    tables = [table for table, _ in source.values()]
    hosts = {host: title for table in tables for host, title in table.hosts.items()}
    variants = dict.fromkeys(row.variant for table in tables for row in table.rows)
    quantities = _quantities(source)
    figure, grid = panels(list(hosts.values()), len(quantities), height=3.4)
    for row, (text, quantity) in zip(grid, quantities.items(), strict=True):
        row[0].set_ylabel(f"{text}{_unit(tables[0], 'eV/Å' if 'force' in text else 'eV')}")
        for axes, host in zip(row, hosts, strict=True):
            for variant in variants:
                points = {number: _values(*source[number], host, variant, quantity) for number in sorted(source)}
                points = {number: values for number, values in points.items() if values}
                if points:
                    draw_line(axes, np.array(list(points)), list(points.values()), variant, looks[variant])
            logarithmic(axes, x=True)
            ticks(axes, sorted(source))
    return finish(figure, label)


def _quantities(source: Numbered) -> dict[str, Quantity]:
    """What is shown of a run and an evaluation set, by its label."""
    profiles = [next((r.profiles[name] for r in table.finished if name in r.profiles), None) for table, name in source.values()]
    if None in profiles:
        return {
            "energy MAE per atom": lambda record, name: record.metrics.get(name, {}).get("energy_mae_per_atom"),
            "force MAE": lambda record, name: record.metrics.get(name, {}).get("force_mae"),
        }

    def of(measure: Callable[[Profile], float]) -> Quantity:
        return lambda record, name: measure(record.profiles[name]) if name in record.profiles else None

    result = {"largest deviation": of(lambda profile: float(measures.deviations(profile).max()))}
    if all(profile is not None and profile.scan.get("analysis") == "barrier" for profile in profiles):
        result["|barrier error|"] = of(lambda profile: abs(measures.barrier_error(profile)))
    return result


def _values(table: Table, name: str, host: str, variant: str, quantity: Quantity) -> list[float]:
    """One per finished seed that has it."""
    rows = [row for row in table.rows if (row.host, row.variant) == (host, variant)]
    found = [quantity(record, name) for row in rows for record in row.finished]
    return [value for value in found if value is not None]


def _draw_decay(axes: Axes, found: Sequence[Profile], curves: Sequence[Sequence[float]], label: str, look: Look) -> None:
    """|E - E0| in the tail over x, of those curves that follow a power law."""
    fits = [measures.fit_tail(profile, energies) for profile, energies in zip(found, curves, strict=True)]
    decays = [
        np.abs(np.array(energies) - fit[1])[measures.in_tail(profile)]
        for profile, energies, fit in zip(found, curves, fits, strict=True)
        if fit is not None
    ]
    if decays:
        x = np.array(found[0].x)[measures.in_tail(found[0])]
        draw_line(axes, x, np.array(decays).T, label, look)
        logarithmic(axes, x=True)


def _frame_decay(row: np.ndarray, shown: Profile) -> None:
    """Limits and ticks of panels that have the reference's tail in their middle."""
    from matplotlib.ticker import MaxNLocator

    lines = [line for line in row[0].lines if line.get_label() == "reference"]
    x = np.array(shown.x)[measures.in_tail(shown)]
    for axes in row:
        ticks(axes, [at for at in MaxNLocator(5).tick_values(x.min(), x.max()) if x.min() <= at <= x.max()])
        for line in lines:
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, min(line.get_ydata()) / 5), min(top, 5 * max(line.get_ydata())))


def _zero(profile: Profile) -> tuple[float, str]:
    """What energies of a picture are relative to, and how its axis says so."""
    if profile.scan["align"] == "last":
        return profile.reference[-1], ", last point at 0"
    if profile.scan["align"] == "mean":
        return min(profile.reference), " above the reference's minimum"
    return 0.0, ""


def _range(members: Mapping[int, str]) -> str:
    """Names by their numbers: test_39, …, test_314; two are named both."""
    first, *between, last = members.values()
    return f"{first}, {'…, ' if between else ''}{last}"


def _scans(table: Table) -> list[str]:
    return sorted({name for record in table.finished for name in record.profiles}, key=natural)


def _evaluated(table: Table) -> list[str]:
    return sorted({name for record in table.finished for name in (*record.metrics, *record.profiles)}, key=natural)


def _columns(table: Table, grid: np.ndarray) -> Iterator[tuple[Row, np.ndarray]]:
    """Each row of a table with its host's column of panels."""
    hosts = list(table.hosts)
    for row in table.rows:
        yield row, grid[:, hosts.index(row.host)]


def _unit(table: Table, unit: str) -> str:
    return f" ({unit})" if table.units == "eV" else ""
