"""What stands beside the tables of a study: settings, versions, hardware, and the runs one by one. Text only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from efa_addons.studies.columns import MISSING, TEST, measured
from efa_addons.studies.grouping import Section, Table, flat, run_name
from efa_addons.studies.record import Record

Rows = list[list[str]]


def settings(section: Section) -> tuple[Rows, Rows]:
    """Setting and value of what all models have in common; and each model with what it has not, in words."""
    models = {(record.host_label, record.variant): flat(record.settings) for record in section.records}
    first, *others = models.values()
    shared = {key: value for key, value in first.items() if all(key in other and other[key] == value for other in others)}
    own = [
        [f"{host}, {variant}", words({key: value for key, value in model.items() if key not in shared})]
        for (host, variant), model in models.items()
    ]
    return [[key, _text(value)] for key, value in shared.items()], own


def words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {_text(value)}" for key, value in values.items()) or MISSING


def versions(section: Section) -> tuple[list[str], Rows]:
    """Heads and rows: package, and its version for each host; several where the runs of a host had several."""
    hosts = {record.host: record.host_label for record in section.records}
    packages = sorted({name for record in section.records for name in record.versions}, key=str.lower)
    rows = [
        [name, *(_joined(r.versions.get(name, "") for r in section.records if r.host == host) for host in hosts)]
        for name in packages
    ]
    return ["package", *hosts.values()], rows


def hardware(section: Section) -> str:
    return _joined(record.hardware for record in section.records)


def runs(table: Table) -> tuple[list[str], Rows]:
    """Heads and rows: each run with its time, memory and test errors, in the units of the records."""
    unit, force = (" (eV)", " (eV/Å)") if table.units == "eV" else ("", "")
    heads = ["run", "status", "training (s)", "total (s)", "memory (MiB)", f"energy MAE{unit}", f"force MAE{force}", "data"]
    return heads, [_run(record) for row in table.rows for record in sorted((*row.finished, *row.failed), key=lambda r: r.seed)]


def failed(section: Section) -> list[Record]:
    return [record for record in section.records if not record.finished]


def commands(section: Section) -> list[tuple[str, str]]:
    """Name and command of each run that has one."""
    pairs = [(run_name(record), record.settings.get("command")) for record in section.records]
    return [(name, command if isinstance(command, str) else " ".join(map(str, command))) for name, command in pairs if command]


def _run(record: Record) -> list[str]:
    test = record.metrics.get(TEST, {})
    numbers = [record.seconds.get("training"), record.seconds.get("total"), record.peak_memory or None]
    numbers += [test.get("energy_mae"), test.get("force_mae")]
    digest = record.split.get("train", "")
    cells = [MISSING if number is None else measured(number, float("nan")) for number in numbers]
    return [run_name(record), record.status, *cells, digest[:8] or MISSING]


def _joined(values: Iterable[str]) -> str:
    return " / ".join(value for value in dict.fromkeys(values) if value) or MISSING


def _text(value: Any) -> str:
    """As in YAML, about."""
    if value is None:
        return "none"
    if value == {}:
        return "defaults"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_text, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
