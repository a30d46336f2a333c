"""The runs of a folder in the order of a report: a section per study, in it a table per data set, a row per host and variant.

What a row averages must be alike. Runs on unequal data or with unequal settings are an error, not a second table: both halves
would look like results, and it is the runs that are wrong, left over from another version of the study.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from efa_addons.errors import EFAError
from efa_addons.studies.hosts import DISTRIBUTIONS
from efa_addons.studies.hosts import NAMES as HOSTS
from efa_addons.studies.record import Missing, Record, same_split

WITHOUT = "without EFA"  # the label of the variant that others are compared with
LISTED = 4  # runs that an error names of each kind
APART = {"command", "seed"}  # keys of settings that differ between the runs of a row
T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """A host and a variant on one data set; its runs in the order of their seeds."""

    host: str
    host_label: str
    variant: str
    finished: tuple[Record, ...]
    failed: tuple[Record, ...]

    @property
    def label(self) -> str:
        return f"{self.host_label}, {self.variant}"


@dataclass(frozen=True)
class Table:
    """All rows of one data set; `seeds` are the study's, `literature` others' figures on these data."""

    data: str
    units: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    literature: tuple[Mapping[str, Any], ...]

    @property
    def finished(self) -> list[Record]:
        return [record for row in self.rows for record in row.finished]

    @property
    def hosts(self) -> dict[str, str]:
        """Name -> label."""
        return {row.host: row.host_label for row in self.rows}


@dataclass(frozen=True)
class Section:
    """A study in one size."""

    study: str
    size: str
    title: str
    question: str
    tables: tuple[Table, ...]

    @property
    def name(self) -> str:
        return f"{self.study} ({self.size})"

    @property
    def records(self) -> list[Record]:
        return [record for table in self.tables for row in table.rows for record in (*row.finished, *row.failed)]


def sections(records: Sequence[Record], missing: Sequence[Missing] = ()) -> list[Section]:
    """The records of `record.read_all`, ordered; raises where a row or a table would compare what is not alike."""
    return [_section(members, missing) for members in _by(lambda r: (r.study, r.size), records).values()]


def variants(records: Iterable[Record]) -> list[str]:
    """Labels of variants: `WITHOUT` first, others in the order of their studies, or else as they are found."""
    records = list(records)
    labels = [label for record in records for label in record.variants] + [record.variant for record in records]
    return sorted(dict.fromkeys(labels), key=lambda label: label != WITHOUT)


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts test_39 before test_132."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def numbered(names: Iterable[str]) -> dict[str, dict[int, str]]:
    """What is named like test_39, test_132: the common name -> number -> name; what stands alone is left out."""
    found: dict[str, dict[int, str]] = {}
    for name in sorted(names, key=natural):
        match = re.fullmatch(r"(.+?)[_-]?(\d+)", name)
        if match:
            found.setdefault(match[1], {})[int(match[2])] = name
    return {prefix: members for prefix, members in found.items() if len(members) > 1}


def _section(records: list[Record], missing: Sequence[Missing]) -> Section:
    first = records[0]
    order = variants(records)
    own = [run for run in missing if (run.study, run.size) == (first.study, first.size)]
    tables = [
        _table(members, order, [run.seed for run in own if run.data == data])
        for data, members in _by(lambda r: r.data, records).items()
    ]
    tables.sort(key=lambda table: natural(table.data))
    return Section(first.study, first.size, first.title, first.question, tuple(tables))


def _table(records: list[Record], order: list[str], further_seeds: Sequence[int]) -> Table:
    first = records[0]
    ordered = sorted(records, key=lambda r: (HOSTS.index(r.host) if r.host in HOSTS else len(HOSTS), order.index(r.variant)))
    rows = tuple(_row(members) for members in _by(lambda r: (r.host, r.variant), ordered).values())
    seeds = tuple(sorted({*further_seeds, *(record.seed for record in records)}))
    table = Table(first.data, first.units, seeds, rows, _literature(records))
    if not same_split(table.finished):
        raise _unlike("data", _by(lambda r: _text(r.split), table.finished), lambda r: r.split)
    for members in _by(lambda r: r.host, table.finished).values():
        _check("training", members, lambda r: r.settings.get("training"))
        _check("versions", members, _deciding_versions)
    return table


def _deciding_versions(record: Record) -> dict[str, str]:
    names = ("efa_addons", DISTRIBUTIONS.get(record.host, ""))
    return {name: record.versions[name] for name in names if name in record.versions}


def _row(records: list[Record]) -> Row:
    records = sorted(records, key=lambda record: record.seed)
    first = records[0]
    finished = tuple(record for record in records if record.finished)
    _check("settings", finished, lambda r: r.settings)
    failed = tuple(record for record in records if not record.finished)
    return Row(first.host, first.host_label, first.variant, finished, failed)


def _literature(records: list[Record]) -> tuple[Mapping[str, Any], ...]:
    """Entries for these data, and those for any; each once."""
    entries = {_text(entry): entry for record in records for entry in record.literature}
    return tuple(entry for entry in entries.values() if entry.get("data", records[0].data) == records[0].data)


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """{"model": {"cutoff": 5}} -> {"model.cutoff": 5}, without the keys `APART`."""
    if not isinstance(settings, Mapping) or (prefix and not settings):
        return {prefix: settings}
    parts = [flat(value, f"{prefix}.{key}".lstrip(".")) for key, value in settings.items() if key not in APART]
    return {key: value for part in parts for key, value in part.items()}


def run_name(record: Record) -> str:
    """As its folder, with a variant's label."""
    return f"{record.data}/{record.host}/{record.variant}/seed-{record.seed}"


def _check(what: str, records: Sequence[Record], value: Callable[[Record], Any]) -> None:
    kinds = _by(lambda r: _text(flat(value(r))), records)
    if len(kinds) > 1:
        raise _unlike(what, kinds, value)


def _unlike(what: str, groups: Mapping[str, Sequence[Record]], value: Callable[[Record], Any]) -> EFAError:
    """Names the runs of each kind, and what differs."""
    kinds = list(groups.values())
    record = kinds[0][0]
    names = []
    for members in kinds:
        more = f", and {len(members) - LISTED} more" if len(members) > LISTED else ""
        names.append(", ".join(run_name(member) for member in members[:LISTED]) + more)
    one, other = (flat(value(members[0])) for members in kinds[:2])
    keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
    return EFAError(
        f"{record.study} ({record.size}): runs with unequal {what} cannot stand in one table, they differ in "
        f"{', '.join(keys)}:\n  {chr(10).join(names).replace(chr(10), chr(10) + '  ')}\n"
        "Remove those that are outdated and run the study again, or report on them in folders of their own."
    )


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _by(key: Callable[[Record], T], records: Iterable[Record]) -> dict[T, list[Record]]:
    """Groups in the order of first appearance."""
    groups: dict[T, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups
