"""Tables as Markdown, for a terminal, and as table.csv. HTML is made in `page`."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table as RichTable
from rich.text import Text

from efa_addons.studies import columns as cols
from efa_addons.studies.columns import Column, Spread
from efa_addons.studies.grouping import WITHOUT, Row, Section, Table

OTHERS = "others': "  # begins the label of a row that is not ours


@dataclass(frozen=True)
class Block:
    """Text of a table: heads (lines each), rows, and how many of the last rows are others' figures."""

    title: str
    heads: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    others: int = 0


def blocks(table: Table) -> list[Block]:
    """The table of a data set, in one block for each group of columns: side by side they fit no page."""
    found = cols.columns(table)
    result = []
    for group in cols.GROUPS:
        chosen = [column for column in found if column.group == group]
        heads = (("model",), ("seeds",), *(column.heading(table.units) for column in chosen))
        rows = [(row.label, _seeds(row, table), *_cells(row, chosen, table.units)) for row in table.rows]
        others = []
        for entry in table.literature:
            values = _others(entry)
            cells = [column.text(Spread.of([values.get(column.key)]), table.units) for column in chosen]
            if group == cols.ERRORS or any(cell != cols.MISSING for cell in cells):
                others.append((others_label(entry), cols.MISSING, *cells))
        if chosen or group == cols.ERRORS:  # that of a study in which every run failed, too
            result.append(Block(group, heads, (*rows, *others), len(others)))
    return result


def notes(table: Table) -> list[str]:
    """What must be known to read the table, a sentence each."""
    found = []
    if table.finished:
        several = "Mean ± standard deviation over the finished seeds of training, all on the same data"
        found.append(
            f"{several if len(table.seeds) > 1 else 'One seed'} (seeds: {', '.join(map(str, table.seeds))}); errors on the "
            "test set where no other is named."
        )
    if any(column.key.endswith("_ratio") for column in cols.columns(table)):
        found.append(f"Ratios are to the mean error of the same host {WITHOUT}.")
    limits = cols.wall_limits(table)
    if limits and any(record.curve for record in table.finished):
        times = "; ".join(
            f"{table.hosts[host]}: {limits[host][1]:.3g} s ({limits[host][0]})" for host in table.hosts if host in limits
        )
        found.append(
            "Validation errors are the lowest so far: after all epochs, equally many for all variants of a host; and at equal "
            f"time, that of training steps, when its fastest variant has finished: {times}."
        )
    if any(column.group == cols.SCANS for column in cols.columns(table)):
        found.append(
            "Deviations of scans are those of curves shifted onto the reference, by their mean or their last point, where the "
            "study says so; energy MAE is of energies as they are."
        )
    if any(column.key.endswith("_exponent") for column in cols.columns(table)):
        found.append(
            f"Exponents are those of E0 + c / x^n, fitted to the tail; {cols.MISSING}: it is flat or follows no power law."
        )
    for host, label in table.hosts.items():
        machines = dict.fromkeys(record.hardware for record in table.finished if record.host == host)
        if len(machines) > 1:
            found.append(f"Times of {label} are of different machines and compare nothing: {' / '.join(machines)}.")
    for row in table.rows:
        if row.failed:
            found.append(f"{row.label}: failed with seed {', '.join(str(record.seed) for record in row.failed)}.")
    for entry in table.literature:
        found.append(f"{others_label(entry)}{_remark(table, entry)}.")
    return found


def others_label(entry: Mapping[str, Any]) -> str:
    return f"{OTHERS}{entry.get('label', 'unnamed')}"


def markdown(heads: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first to the right."""
    lines = [[" ".join(head).replace("- ", "") for head in heads], ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def rich(title: str, heads: Sequence[Sequence[str]], rows: Sequence[Sequence[str]], others: int = 0) -> RichTable:
    """A table for the terminal; the last `others` rows in italics."""
    table = RichTable(title=title, box=SIMPLE, collapse_padding=True, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column("\n".join(head), justify="right" if i else "left", no_wrap=True)
    for i, row in enumerate(rows):
        table.add_row(*(Text(cell) for cell in row), style="italic" if i >= len(rows) - others else None)
    return table


def narrow(block: Block, width: int) -> Iterator[Block]:
    """The block in pieces of at most `width` characters where that is possible, each with the models."""
    widths = [max(len(text) for text in (*head, *column)) for head, *column in zip(block.heads, *block.rows, strict=True)]
    start = 1
    while start < len(widths):
        end, used = start + 1, widths[0] + widths[start] + 4  # two characters between columns, one at either end
        while end < len(widths) and used + widths[end] + 2 <= width:
            used += widths[end] + 2
            end += 1
        picked = (0, *range(start, end))
        yield replace(
            block,
            heads=tuple(block.heads[i] for i in picked),
            rows=tuple(tuple(row[i] for i in picked) for row in block.rows),
        )
        start = end


def write_csv(path: Path, sections: Sequence[Section]) -> None:
    """One line per row of all tables: mean and standard deviation of every column, in the units of the records."""
    first = ["study", "size", "data", "units", "host", "variant", "label", "source", "seeds_finished", "seeds_all"]
    lines: list[dict[str, Any]] = []
    for section in sections:
        for table in section.tables:
            where = {"study": section.study, "size": section.size, "data": table.data, "units": table.units}
            found = cols.columns(table)
            lines += [where | _line(row, table, found) for row in table.rows]
            for entry in table.literature:
                named = {"label": others_label(entry), "source": entry.get("source", "")}
                lines.append(where | named | _others(entry))
    names = list(dict.fromkeys([*first, *(name for line in lines for name in line)]))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(lines)


def _line(row: Row, table: Table, found: Sequence[Column]) -> dict[str, Any]:
    line: dict[str, Any] = {"host": row.host, "variant": row.variant, "label": row.label}
    line |= {"seeds_finished": len(row.finished), "seeds_all": len(table.seeds)}
    for column in found:
        spread = cols.spread(row, column)
        line[column.key] = "" if spread is None else spread.mean
        line[f"{column.key}_std"] = "" if spread is None or spread.num < 2 else spread.deviation
    return line


def _seeds(row: Row, table: Table) -> str:
    return f"{len(row.finished)}/{len(table.seeds)}"


def _cells(row: Row, chosen: Sequence[Column], units: str) -> list[str]:
    return [column.text(cols.spread(row, column), units) for column in chosen]


def _others(entry: Mapping[str, Any]) -> dict[str, float]:
    """Others' figures by keys of columns: `metrics`, where those of an evaluation set may stand under its name."""
    result = {}
    for name, value in (entry.get("metrics") or {}).items():
        nested = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, number in nested:
            joined = "_".join(part for part in ("" if name == cols.TEST else name, key) if part)
            result[joined] = number
    return {key: float(value) for key, value in result.items() if isinstance(value, (int, float))}


def _remark(table: Table, entry: Mapping[str, Any]) -> str:
    """Source and note, and what no column of the table has a place for."""
    known = {column.key for column in cols.columns(table)}
    rest = [f"{key}: {value:g}" for key, value in _others(entry).items() if key not in known]
    parts = [str(entry[key]).rstrip(".") for key in ("source", "note") if entry.get(key)]
    return "".join(f"; {part}" if i else f": {part}" for i, part in enumerate([*parts, *rest]))
