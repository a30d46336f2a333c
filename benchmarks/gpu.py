"""Everything that has to be measured on a GPU: `python -m benchmarks.gpu` checks Triton's kernels there, then times them.

Sections, in this order; --only takes some of them:

- gate: at real sizes and in every precision the kernels' sums, their first and second derivatives must agree with float64, or
  nothing is timed;
- limits, kernels: the card's own (matrix products, copies), and what the kernels reach of them;
- attention: from 1000 to a million atoms and in batches of molecules, by each back end;
- molecules: what would decide on a kernel for the sum over pairs;
- mace: steps of MACE with and without EFA, by e3nn and by cuEquivariance;
- reference: the JAX reference on the attention's problems.

What is not installed is said in the table. Times are medians over repetitions, memory the peak of the allocator over what was
there before (of the reference what its compiler laid out). Written are a CSV file and a page of tables with the targets first,
named after the card and the sections; `.part` in their names if a run was broken off or a section failed.

Without a GPU, that it runs: TRITON_INTERPRET=1 python -m benchmarks.gpu --quick --device cpu
"""

from __future__ import annotations

import argparse
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.gpu_attention import attention, molecules, references
from benchmarks.gpu_kernels import gate, limits, rates
from benchmarks.gpu_mace import mace
from benchmarks.gpu_report import markdown, targets
from benchmarks.gpu_timing import NOT_INSTALLED
from benchmarks.machine import installed
from benchmarks.report import show_table
from benchmarks.rows import Row, in_a_line, read_rows, write_rows

SECTIONS = {
    "gate": gate,
    "limits": limits,
    "kernels": rates,
    "attention": attention,
    "molecules": molecules,
    "mace": mace,  # after all that is timed in this process, see gpu_timing.on_device
    "reference": references,
}


def main() -> None:
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|mace|e3nn")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: that it runs, not how fast")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="some sections")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--from-csv", type=Path, nargs="+", metavar="CSV", help="measure nothing: one page of earlier runs")
    args = parser.parse_args()
    if args.from_csv:
        rows = [row for path in args.from_csv for row in read_rows(path)]
        _finish(rows, args.out / f"{args.from_csv[0].stem}.md")
        return
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA device; without one: TRITON_INTERPRET=1, --quick --device cpu.")
    if device.index is not None:
        torch.cuda.set_device(device)  # where CUDA graphs are captured
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    sections = [section for section in SECTIONS if section in args.only]
    part = [] if sections == list(SECTIONS) else sections
    path = args.out / ("_".join(["gpu", card.replace(" ", "_"), *part, *["quick"] * args.quick]) + ".csv")
    unfinished = path.with_suffix(".part.csv")  # until it is: an earlier run's file is not replaced by less
    rows = [Row("conditions", "machine", _conditions(card, args.repeats))]
    try:
        for section in sections:
            for row in _rows(section, device, args.quick, args.repeats):
                rows.append(row)
                print(_line(row), flush=True)
                write_rows(unfinished, rows)
    except BaseException:
        _finish(rows, unfinished.with_suffix(".md"))
        raise
    failed = [row.case for row in rows if not row.contender or (row.case == "gate" and row.status not in ("", NOT_INSTALLED))]
    if not failed:
        unfinished = unfinished.replace(path)
    print(unfinished)
    _finish(rows, unfinished.with_suffix(".md"))
    if failed:
        raise SystemExit(f"these sections were not run to their end: {', '.join(dict.fromkeys(failed))}")


def _conditions(card: str, repeats: int) -> str:
    """What the figures hold for; kept with them in the CSV file."""
    packages = installed("torch", "triton", "jax", "mace-torch", "cuequivariance-torch", "efa-addons")
    cuda = [f"CUDA {torch.version.cuda}"] * bool(torch.version.cuda)
    return f"{card}, float32, medians of {repeats}; {', '.join([*packages, *cuda, f'Python {platform.python_version()}'])}"


def _finish(rows: list[Row], page: Path) -> None:
    """The page of what was measured, and the targets on the screen."""
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(markdown(rows))
    show_table(targets(rows))
    print(page)


def _rows(section: str, device: torch.device, quick: bool, repeats: int) -> Iterator[Row]:
    """Those of a section; what ends it is a row without contender, and the other sections are worth measuring."""
    try:
        yield from SECTIONS[section](device, quick, repeats)
    except Exception as error:
        yield Row(section, "", "", status=in_a_line(error))


def _line(row: Row) -> str:
    sizes = f"{row.num_graphs} x {row.num_atoms} {row.width_qk}/{row.width_v}" if row.num_graphs else ""
    figures = [(row.ms, "ms"), (row.mib, "MiB"), (row.rate, "GFlop/s or GB/s"), (row.difference, "error")]
    return f"{row.case:10} {row.contender:20} {row.task:22} {sizes:18} " + ", ".join(
        [f"{value:.4g} {unit}" for value, unit in figures if value is not None] + [row.status] * bool(row.status)
    )


if __name__ == "__main__":
    main()
