"""Everything that has to be measured on a GPU: `python -m benchmarks.gpu` checks Triton's kernels there, then times them.

Sections, in this order; --only takes some of them:

- gate: at real sizes and in every precision the kernels' sums, their first and second derivatives must agree with float64, or
  nothing is timed;
- limits, kernels: the card's own (matrix products, copies), and what the kernels reach of them;
- attention: from 1000 to a million atoms and in batches of molecules, by each back end;
- mace: steps of MACE with and without EFA, by e3nn and by cuEquivariance;
- molecules: what would decide on a kernel for the sum over pairs;
- reference: the JAX reference on the attention's problems.

What is not installed is said in the table. Times are medians over repetitions, memory the peak of the allocator over what was
there before. Written are a CSV file and a page of tables, named after the card, with the targets first.

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
from benchmarks.gpu_timing import in_a_line
from benchmarks.report import show_table
from benchmarks.rows import Row, write_rows

SECTIONS = {
    "gate": gate,
    "limits": limits,
    "kernels": rates,
    "attention": attention,
    "mace": mace,
    "molecules": molecules,
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
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu needs a CUDA device; without one: TRITON_INTERPRET=1, --quick --device cpu.")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "interpreter"
    path = args.out / f"gpu_{name.replace(' ', '_')}{'_quick' if args.quick else ''}.csv"
    if device.index is not None:
        torch.cuda.set_device(device)  # where CUDA graphs are captured
    rows: list[Row] = []
    for section in args.only:
        for row in _rows(section, device, args.quick, args.repeats):
            rows.append(row)
            print(_line(row), flush=True)
            write_rows(path, rows)
    heading = f"({name}, torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}.)"
    path.with_suffix(".md").write_text(markdown(rows, heading))
    show_table(targets(rows))
    print(path)
    failed = [row.case for row in rows if not row.contender]
    if failed:
        raise SystemExit(f"these sections were not run to their end: {', '.join(failed)}")


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
