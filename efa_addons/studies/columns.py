"""The columns of a study's tables, and what a row says in them: mean and standard deviation over seeds.

Values are those of the records (eV, eV/Å, s); tables show meV and meV/Å, and plain numbers for studies in arbitrary units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from efa_addons.studies import measures
from efa_addons.studies.grouping import WITHOUT, Row, Table, natural
from efa_addons.studies.record import Record

ERRORS, SCANS, BUDGET = "Errors", "Scans", "Cost and equal budgets"
DYNAMICS, COST = "Dynamics at constant energy", "Energy and forces of droplets"
GROUPS = (ERRORS, SCANS, DYNAMICS, COST, BUDGET)
MISSING = "–"
TEST = "test"
METRICS = ("energy_mae", "energy_rmse", "energy_mae_per_atom", "energy_rmse_per_atom", "force_mae", "force_rmse")
SHOWN = ("energy_mae", "energy_mae_per_atom", "force_mae")  # of the test set
# unit of a record -> unit of the tables, and the factor between them
UNITS = {"eV": ("meV", 1e3), "eV/atom": ("meV/atom", 1e3), "eV/Å": ("meV/Å", 1e3), "eV/atom/ps": ("meV/atom/ps", 1e3)}
OF_NO_UNIT = {"eV/atom": "per atom", "eV/atom/ps": "per atom and ps"}  # in studies in arbitrary units

SHORT = {"count": ",.0f", "ratio": ".2g"}


@dataclass(frozen=True)
class Column:
    """One column.

    Args:
        key: in table.csv and in others' figures.
        group: of `GROUPS`; none: of table.csv alone.
        head: lines of its head, without the unit.
        value: of a finished run; none: it has no such value.
        unit: of the value; of the tables, see `UNITS`.
        style: "number", "signed", or one of `SHORT`, which show no spread.
    """

    key: str
    group: str
    head: tuple[str, ...]
    value: Callable[[Record], float | None]
    unit: str = ""
    style: str = "number"

    def heading(self, units: str) -> tuple[str, ...]:
        """Lines of the head, with the unit of a study in `units`."""
        unit = self._shown(units)[0]
        return (*self.head, f"({unit})") if unit else self.head

    def text(self, spread: Spread | None, units: str) -> str:
        """A cell of a study in `units`: mean ± standard deviation, and from how many runs if not from all."""
        if spread is None:
            return MISSING
        if self.style in SHORT:
            return format(spread.mean, SHORT[self.style])
        factor = self._shown(units)[1]
        text = measured(spread.mean * factor, spread.deviation * factor, signed=self.style == "signed")
        return text if spread.num == spread.runs else f"{text} ({spread.num} of {spread.runs})"

    def _shown(self, units: str) -> tuple[str, float]:
        if units != "eV" and self.unit.startswith("eV"):
            return OF_NO_UNIT.get(self.unit, ""), 1.0
        return UNITS.get(self.unit, (self.unit, 1.0))


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (of a sample: n - 1; NaN for one value) of `num` values from `runs` finished runs."""

    mean: float
    deviation: float
    num: int
    runs: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> Spread | None:
        known = np.array([value for value in values if value is not None], dtype=float)
        if not len(known):
            return None
        with np.errstate(invalid="ignore"):  # of diverged runs
            deviation = float(known.std(ddof=1)) if len(known) > 1 else math.nan
            return cls(float(known.mean()), deviation, len(known), len(values))


def spread(row: Row, column: Column) -> Spread | None:
    """What a row says in a column; none: nothing."""
    return Spread.of([column.value(record) for record in row.finished])


def columns(table: Table) -> list[Column]:
    """All columns in which a row of the table says something."""
    found = table.finished
    names = sorted({name for record in found for name in (*record.metrics, *record.profiles)}, key=natural)
    scans = {name: record.profiles[name].scan for record in found for name in names if name in record.profiles}
    sets = [name for name in names if name not in scans]
    chosen = [*_test(table), *_sets([name for name in sets if name != TEST], found)]
    for name, scan in scans.items():
        chosen += _scan(name, scan, found)
    chosen += [*_dynamics(), *_cost(found), *_budget(table)]
    return [column for column in chosen if any(column.value(record) is not None for record in found)]


def _metric(name: str, key: str) -> Callable[[Record], float | None]:
    return lambda record: record.metrics.get(name, {}).get(key)


def _test(table: Table) -> list[Column]:
    words = (("energy", "eV"), ("energy", "eV/atom"), ("force", "eV/Å"))
    shown = zip(SHOWN, words, strict=True)
    return [
        *(Column(key, ERRORS, (word, "MAE"), _metric(TEST, key), unit) for key, (word, unit) in shown),
        _ratio(table, "energy_mae", "energy"),
        _ratio(table, "force_mae", "force"),
    ]


def _ratio(table: Table, key: str, word: str) -> Column:
    """A run's error over the mean error of the same host without EFA."""
    value = _metric(TEST, key)
    base = {row.host: Spread.of([value(record) for record in row.finished]) for row in table.rows if row.variant == WITHOUT}

    def ratio(record: Record) -> float | None:
        reference, error = base.get(record.host), value(record)
        return None if reference is None or error is None or not reference.mean else error / reference.mean

    return Column(f"{key}_ratio", ERRORS, (word, "MAE", "ratio"), ratio, style="ratio")


def _sets(names: Sequence[str], found: Sequence[Record]) -> list[Column]:
    """Energy errors of further evaluation sets: per atom where any two structures of theirs differ in size."""
    sizes = {round(size, 3) for record in found for name in (*names, TEST) for size in _size(record.metrics.get(name, {}))}
    key, unit = ("energy_mae", "eV") if len(sizes) <= 1 else ("energy_mae_per_atom", "eV/atom")
    shown = [Column(_key(name, key), ERRORS, (name, "energy", "MAE"), _metric(name, key), unit) for name in names]
    taken = {*SHOWN, *(column.key for column in shown)}
    rest = [(name, key) for name in (TEST, *names) for key in METRICS if _key(name, key) not in taken]
    return shown + [Column(_key(name, key), "", (), _metric(name, key)) for name, key in rest]


def _key(name: str, key: str) -> str:
    """A metric's key in table.csv."""
    return key if name == TEST else f"{name}_{key}"


def _size(metrics: Mapping[str, float]) -> list[float]:
    """Mean number of atoms of a set's structures, as its errors tell; not always a whole number where sizes are mixed."""
    energy, per_atom = metrics.get("energy_mae", math.nan), metrics.get("energy_mae_per_atom", 0.0)
    return [energy / per_atom] if per_atom > 0 and math.isfinite(energy / per_atom) else []


def _scan(name: str, scan: Mapping[str, Any], found: Sequence[Record]) -> list[Column]:
    def of(measure: Callable[..., float | None]) -> Callable[[Record], float | None]:
        return lambda record: measure(record.profiles[name]) if name in record.profiles else None

    result = [
        Column(
            f"{name}_deviation", SCANS, (name, "largest", "deviation"), of(lambda p: float(measures.deviations(p).max())), "eV"
        ),
        Column(f"{name}_mae", SCANS, (name, "mean", "deviation"), of(lambda p: float(measures.deviations(p).mean())), "eV"),
        Column(f"{name}_energy_mae", SCANS, (name, "energy", "MAE"), _metric(name, "energy_mae"), "eV"),
    ]
    if scan.get("analysis") == "barrier":
        result.append(
            Column(f"{name}_barrier_error", SCANS, (name, "barrier", "error"), of(measures.barrier_error), "eV", "signed")
        )
    if scan.get("analysis") == "power_law":
        reference = of(measures.reference_exponent)
        value = next((reference(record) for record in found if name in record.profiles), None)
        shown = MISSING if value is None else measured(value, math.nan)
        result.append(Column(f"{name}_exponent", SCANS, (name, "exponent", f"(ref. {shown})"), of(measures.exponent)))
        result.append(Column(f"{name}_exponent_reference", "", (), reference))  # of table.csv alone
    return result


def _dynamics() -> list[Column]:
    def of(key: str) -> Callable[[Record], float | None]:
        return lambda record: record.dynamics.get(key)

    return [
        Column("dynamics_drift", DYNAMICS, ("drift",), of("drift"), "eV/atom/ps", "signed"),
        Column("dynamics_spread", DYNAMICS, ("fluctuation",), of("spread"), "eV/atom"),
        Column("dynamics_temperature", DYNAMICS, ("temperature",), of("temperature"), "K"),
        Column("dynamics_fell_apart", DYNAMICS, ("fell apart", "after"), of("fell_apart"), "ps"),
    ]


def _cost(found: Sequence[Record]) -> list[Column]:
    """A column for each number of atoms, of time and of memory."""

    def of(key: str, num_atoms: int) -> Callable[[Record], float | None]:
        return lambda record: dict(zip(record.cost.get("num_atoms", ()), record.cost.get(key, ()), strict=True)).get(num_atoms)

    sizes = sorted({num_atoms for record in found for num_atoms in record.cost.get("num_atoms", ())})
    return [
        Column(f"{key}_{num_atoms}_atoms", COST, (f"{num_atoms}", "atoms"), of(key, num_atoms), unit)
        for key, unit in (("seconds", "s"), ("memory", "MiB"))
        for num_atoms in sizes
    ]


def wall_limits(table: Table) -> dict[str, tuple[str, float]]:
    """Host -> its fastest variant, and the seconds of training (mean over seeds) after which that has finished."""
    times: dict[str, tuple[str, float]] = {}
    for row in table.rows:
        mean = Spread.of([record.seconds.get("training") for record in row.finished])
        if mean is not None and (row.host not in times or mean.mean < times[row.host][1]):
            times[row.host] = (row.variant, mean.mean)
    return times


def _budget(table: Table) -> list[Column]:
    limits = wall_limits(table)

    def by_then(key: str) -> Callable[[Record], float | None]:
        def value(record: Record) -> float | None:
            variant, seconds = limits.get(record.host, ("", math.nan))
            # the fastest itself has finished, also that of its runs that took longer than the mean
            return measures.best(record, key, math.inf if record.variant == variant else seconds)

        return value

    result = [
        Column("num_parameters", BUDGET, ("para-", "meters"), lambda r: r.num_parameters or None, style="count"),
        Column("seconds", BUDGET, ("training",), lambda r: r.seconds.get("training"), "s"),
        Column("peak_memory", "", (), lambda r: r.peak_memory or None),
    ]
    for key, word, unit in (("energy_mae", "energy", "eV"), ("force_mae", "force", "eV/Å")):
        at_end = lambda record, key=key: measures.best(record, key)  # noqa: E731
        result.append(Column(f"valid_{key}", BUDGET, ("validation", f"{word},", "all epochs"), at_end, unit))
        result.append(
            Column(f"valid_{key}_at_equal_time", BUDGET, ("validation", f"{word},", "equal time"), by_then(key), unit)
        )
    return result


def measured(value: float, deviation: float, signed: bool = False) -> str:
    """Three digits of a value, and its standard deviation (NaN: none) to the same place."""
    if not math.isfinite(value):
        return str(value)
    known = math.isfinite(deviation)
    size = float(f"{max(abs(value), deviation if known else 0.0):.2e}")  # 9.999 has the digits of 10.0
    power = math.floor(math.log10(size)) if size > 0 else 0
    scientific = not -5 < power < 6
    scale, places = (10.0**power, 2) if scientific else (1.0, max(0, 2 - power))
    text = f"{value / scale:{'+' if signed else ''}.{places}f}"
    if known:
        text += f" ± {deviation / scale:.{places}f}"
    if not scientific:
        return text
    return f"({text})e{power}" if known else f"{text}e{power}"
