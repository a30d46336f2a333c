"""The report on studies: from the run.json files below a folder to tables, pictures and a page, see `write`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from efa_addons.errors import EFAError
from efa_addons.studies import cumulene, facts, page, pictures, tables
from efa_addons.studies.drawing import looks
from efa_addons.studies.grouping import WITHOUT, Section, Table, run_name, sections, variants
from efa_addons.studies.record import FILE, Missing, Record, read_all
from efa_addons.version import __version__

REPORT, TABLE, PAGE, PICTURES = "report.md", "table.csv", "report.html", "pictures"
WIDTHS = (80, 100)  # of the printed tables, as the terminal allows
Pictures = Mapping[str, Mapping[str, Sequence[Path]]]  # name of a section -> data set ("": several) -> files


def write(folder: Path | str) -> list[Path]:
    """Makes report.md, table.csv, report.html and pictures/ in a folder from the runs below it; prints tables and paths.

    There may be several studies and sizes below it; each becomes a section. Returns what was written.
    """
    folder = Path(folder)
    cumulene.require("matplotlib", "data")
    records, left, missing = read(folder)
    found = sections(records, missing)
    styles = looks(_order(records))
    drawn = {section.name: pictures.draw(folder / PICTURES, section, styles) for section in found}
    said = [f"Left out, since their study no longer has them: {', '.join(left)}."] if left else []
    if missing:
        said.append(f"Not run yet, or not to the end: {', '.join(_below(folder, run.folder) for run in missing)}.")
    made = " ".join([f"Made by efa_addons {__version__}: efa-addons report.", *said])
    (folder / REPORT).write_text(markdown(found, drawn, folder, made), encoding="utf-8")
    tables.write_csv(folder / TABLE, found)
    (folder / PAGE).write_text(page.html(found, drawn, made), encoding="utf-8")
    show(found, Console())
    paths = [folder / name for name in (REPORT, TABLE, PAGE)]
    paths += [path for of in drawn.values() for files in of.values() for path in files]
    print("\n".join([*said, *map(str, paths)]))
    return paths


def read(folder: Path) -> tuple[list[Record], list[str], list[Missing]]:
    """All records below a folder that their studies have as they stand, each run once; the folders of other runs; and what
    is missing."""
    if not folder.is_dir():
        raise EFAError(f"{folder} is not a folder: give the one that efa-addons study wrote its runs to.")
    records, left, missing = read_all(folder)
    if not records and not left:
        raise EFAError(
            f"no {FILE} below {folder}: give the folder that efa-addons study wrote its runs to, or run a study first."
        )
    seen: dict[tuple[str, ...], Path] = {}
    for path, record in records.items():
        key = (record.study, record.size, run_name(record))
        if key in seen:
            raise EFAError(f"{path} and {seen[key]} are the same run ({run_name(record)}): report on their folders one by one.")
        seen[key] = path
    return list(records.values()), [_below(folder, path.parent) for path in left], missing


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def markdown(found: Sequence[Section], drawn: Pictures, folder: Path, made: str) -> str:
    """The text of report.md."""
    parts = ["# Report", made]
    for section in found:
        of = drawn.get(section.name, {})
        parts += [f"## {section.name}: {section.title}", section.question]
        for table in section.tables:
            parts += [f"### {table.data}", *_markdown_table(table), *_images(of.get(table.data, ()), folder)]
        if of.get(""):
            parts += ["### Data sets compared", *_images(of[""], folder)]
        shared, own = facts.settings(section)
        parts += ["### Settings", tables.markdown((("setting",), ("of all runs",)), shared).rstrip()]
        parts.append(tables.markdown((("model",), ("its own settings",)), own).rstrip())
        parts.append(f"Hardware: {facts.hardware(section)}. Versions and single runs are in {PAGE}.")
        failed = facts.failed(section)
        if failed:
            parts.append("### Failed runs")
            parts += [f"{run_name(record)}:\n\n```\n{record.error.strip()}\n```" for record in failed]
    return "\n\n".join(part for part in parts if part) + "\n"


def show(found: Sequence[Section], console: Console) -> None:
    """The tables for a terminal."""
    width = min(max(console.width, WIDTHS[0]), WIDTHS[1])
    said: set[str] = set()
    for section in found:
        console.print(f"\n[bold]{escape(section.name)}[/bold]", escape(section.title), highlight=False, soft_wrap=True)
        for table in section.tables:
            for block in tables.blocks(table):
                for piece in tables.narrow(block, width):
                    title = f"{table.data}: {piece.title.lower()}"
                    console.print(tables.rich(title, piece.heads, piece.rows, piece.others), soft_wrap=False)
            for note in tables.notes(table):
                if note not in said:
                    console.print(note, markup=False, highlight=False)
                said.add(note)
        for record in facts.failed(section):
            last = record.error.strip().splitlines()[-1:]
            console.print(f"failed: {run_name(record)}: {''.join(last)}", markup=False, highlight=False)


def _order(records: Sequence[Record]) -> list[str]:
    """Variants as they are given looks: the first two are `WITHOUT` and the first that attends, whatever else there is."""
    labels = variants(records)
    efa = {record.variant: record.settings.get("efa") for record in records}
    attends = {label for label, options in efa.items() if options is not None and not options.get("emulate")}
    attending = [label for label in labels if label in attends]
    return list(dict.fromkeys([WITHOUT, *attending[:1], *labels]))


def _markdown_table(table: Table) -> list[str]:
    parts = [f"{block.title}:\n\n{tables.markdown(block.heads, block.rows).rstrip()}" for block in tables.blocks(table)]
    return [*parts, "\n".join(f"- {note}" for note in tables.notes(table))]


def _images(paths: Sequence[Path], folder: Path) -> list[str]:
    return [f"![{path.stem}]({path.relative_to(folder).as_posix()})" for path in paths]
