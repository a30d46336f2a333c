"""Scaling of the contenders of `benchmarks.efa` with the number of atoms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.rows import Row


def plot_scaling(rows: Sequence[Row], path: Path, title: str) -> None:
    """Time per atom and memory of "forces" of single structures, a column for each number of directions."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    chosen = [row for row in rows if row.case == "single" and row.task == "forces" and row.ms]
    grids = sorted({row.points for row in chosen})
    figure, axes = pyplot.subplots(2, len(grids), figsize=(4.5 * len(grids), 6.5), sharex=True, sharey="row", squeeze=False)
    for column, points in enumerate(grids):
        for i, name in enumerate(CONTENDERS):
            mine = sorted((row for row in chosen if row.points == points and row.contender == name), key=lambda r: r.num_atoms)
            atoms = [row.num_atoms for row in mine]
            style = {"marker": "osD^"[i], "color": f"C{i}", "label": name, "linewidth": 1.5, "markersize": 4}
            axes[0, column].loglog(atoms, [1000 * (row.ms or 0) / row.num_atoms for row in mine], **style)
            axes[1, column].loglog(atoms, [max(row.mib or 0, 0.1) for row in mine], **style)
        axes[0, column].set_title(f"{points} directions in the reference")
        axes[1, column].set_xlabel("atoms")
    axes[0, 0].set_ylabel("time per atom (µs)")
    axes[1, 0].set_ylabel("memory (MiB)")
    axes[0, 0].legend(frameon=False)
    figure.suptitle(title, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
