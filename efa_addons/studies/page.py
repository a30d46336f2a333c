"""report.html: one page with everything. Pictures are in it; it needs no other file, and loads nothing from elsewhere."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from efa_addons.studies import facts
from efa_addons.studies.grouping import Section, run_name
from efa_addons.studies.tables import Block, blocks, notes

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 3rem; border-bottom: 2px solid #0072b2; } h3 { margin-top: 2rem; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0.3rem 0; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; vertical-align: bottom; text-align: right; }
th, td { white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tr.others td { font-style: italic; background: #f5f5f5; }
td.text { text-align: left; white-space: normal; }
div.wide { overflow-x: auto; }
img { max-width: 100%; display: block; margin: 1rem 0; }
pre { background: #f5f5f5; padding: 0.7rem; overflow-x: auto; font-size: 0.85rem; }
ul.notes { color: #555; font-size: 0.9rem; }
"""


def html(sections: Sequence[Section], pictures: Mapping[str, Mapping[str, Sequence[Path]]], made: str) -> str:
    """The page.

    Args:
        pictures: name of a section -> data set ("": several) -> files.
        made: a line that says what made the page.
    """
    title = " · ".join(dict.fromkeys(section.title for section in sections))
    contents = "".join(f'<li><a href="#s{i}">{escape(s.name)}: {escape(s.title)}</a></li>' for i, s in enumerate(sections))
    parts = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style></head><body>',
        f"<h1>{escape(title)}</h1><p>{escape(made)}</p>",
        f"<ul>{contents}</ul>" if len(sections) > 1 else "",
        *(_section(i, section, pictures.get(section.name, {})) for i, section in enumerate(sections)),
        "</body></html>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _section(number: int, section: Section, pictures: Mapping[str, Sequence[Path]]) -> str:
    parts = [f'<h2 id="s{number}">{escape(section.name)}: {escape(section.title)}</h2><p>{escape(section.question)}</p>']
    for table in section.tables:
        parts.append(f"<h3>{escape(table.data)}</h3>")
        parts += [_block(block) for block in blocks(table)]
        parts.append(f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes(table))}</ul>')
        parts += [_picture(path) for path in pictures.get(table.data, ())]
    if pictures.get(""):
        parts += ["<h3>Data sets compared</h3>", *map(_picture, pictures[""])]
    return "\n".join([*parts, *_facts(section)])


def _block(block: Block) -> str:
    ours = len(block.rows) - block.others
    return _table(block.title, ["<br>".join(map(escape, head)).replace("-<br>", "") for head in block.heads], block.rows, ours)


def _table(caption: str, heads: Iterable[str], rows: Sequence[Sequence[str]], ours: int | None = None, words: int = 1) -> str:
    """Heads are HTML, cells are text; the first `words` columns are words; rows from `ours` on are others'."""
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{' class=text' if j < words else ''}>{escape(cell)}</td>" for j, cell in enumerate(row))
        body.append(f"<tr{' class=others' if ours is not None and i >= ours else ''}>{cells}</tr>")
    head = "".join(f"<th>{cell}</th>" for cell in heads)
    title, lines = f"<caption>{escape(caption)}</caption>" if caption else "", "\n".join(body)
    return f'<div class="wide"><table>{title}<tr>{head}</tr>\n{lines}</table></div>'


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'


def _facts(section: Section) -> list[str]:
    """Settings, versions, runs and commands."""
    shared, own = facts.settings(section)
    heads, rows = facts.versions(section)
    parts = ["<h3>Settings</h3>", _table("Of all runs", ["setting", "value"], shared, words=2)]
    parts.append(_table("Of each model", ["model", "settings"], own, words=2))
    parts += ["<h3>Versions</h3>", f"<p>{escape(facts.hardware(section))}</p>", _table("", heads, rows, words=len(heads))]
    parts.append("<h3>Runs</h3>")
    for table in section.tables:
        heads, rows = facts.runs(table)
        parts.append(_table(table.data, heads, rows, words=2))
    commands = "".join(f"<p>{escape(name)}</p><pre>{escape(command)}</pre>" for name, command in facts.commands(section))
    if commands:
        parts.append(f"<details><summary>Commands</summary>{commands}</details>")
    failed = facts.failed(section)
    if failed:
        parts.append("<h3>Failed runs</h3>")
        parts += [f"<p>{escape(run_name(record))}</p><pre>{escape(record.error)}</pre>" for record in failed]
    return parts
