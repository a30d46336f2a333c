"""What all pictures of the studies share: a panel per host, a line per variant that looks the same everywhere, one legend."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Look = Mapping[str, Any]
# Okabe-Ito colours, told apart by line and marker, too; black is the reference's
LOOKS: tuple[Look, ...] = (
    {"color": "#D55E00", "marker": "s", "linestyle": "--"},
    {"color": "#0072B2", "marker": "o", "linestyle": "-"},
    {"color": "#009E73", "marker": "^", "linestyle": ":"},
    {"color": "#CC79A7", "marker": "D", "linestyle": "-."},
    {"color": "#E69F00", "marker": "v", "linestyle": (0, (5, 1, 1, 1, 1, 1))},
    {"color": "#56B4E9", "marker": "P", "linestyle": (0, (8, 2))},
    {"color": "#666666", "marker": "X", "linestyle": (0, (2, 1))},
)
MODEL = {"linewidth": 1.6, "markersize": 5.5, "markerfacecolor": "white"}
REFERENCE = {"color": "black", "linewidth": 2.5}
MARKERS = 10  # along a line, about


def looks(variants: Sequence[str]) -> dict[str, Look]:
    """Variant -> look. Beyond seven, colours return with other markers and lines."""
    count = len(LOOKS)
    return {label: {**LOOKS[(i + i // count) % count], "color": LOOKS[i % count]["color"]} for i, label in enumerate(variants)}


def panels(titles: Sequence[str], num_rows: int = 1, height: float = 4.2) -> tuple[Figure, np.ndarray]:
    """A figure with a column of panels for each title, and its axes (num_rows, num_titles); a row shares its y-axis."""
    from matplotlib.figure import Figure

    width = 5.6 if len(titles) == 1 else 3.5 * len(titles)
    figure = Figure(figsize=(width, height * (0.2 + 0.8 * num_rows)), layout="constrained")
    grid = figure.subplots(num_rows, len(titles), sharey="row", squeeze=False)
    for title, axes in zip(titles, grid[0], strict=True):
        axes.set_title(title)
    for axes in grid.flat:
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, grid


def draw_line(axes: Axes, x: np.ndarray, values: Sequence[Sequence[float]] | np.ndarray, label: str, look: Look) -> None:
    """The mean of the values (one per seed) at each x, within a band from the lowest to the highest."""
    low, high = np.array([min(of) for of in values]), np.array([max(of) for of in values])
    axes.fill_between(x, low, high, color=look["color"], alpha=0.18, linewidth=0)
    every = max(1, round(len(x) / MARKERS))
    axes.plot(x, [np.mean(of) for of in values], label=label, markevery=every, **{**MODEL, **look})


def logarithmic(axes: Axes, x: bool = False) -> None:
    """A logarithmic y-axis, and x-axis, with ticks in plain numbers."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, value: float, position: int | None = None) -> str:
            return f"{value:g}" if super().__call__(value, position) else ""

    axes.set_yscale("log")
    if x:
        axes.set_xscale("log")
    for axis in (axes.yaxis, axes.xaxis) if x else (axes.yaxis,):
        axis.set_major_formatter(Plain())
        axis.set_minor_formatter(Plain(labelOnlyBase=False))


def ticks(axes: Axes, at: Sequence[float]) -> None:
    """Those of the x-axis, and no others."""
    axes.set_xticks(at, labels=[f"{value:g}" for value in at])
    axes.xaxis.minorticks_off()


def finish(figure: Figure, label: str, columns: int | None = None) -> Figure:
    """The label of the x-axes, and one legend above all panels, in the order in which lines were drawn."""
    legend: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            legend.setdefault(name, handle)
    figure.supxlabel(label, fontsize="medium")
    if columns is None:  # lines of about equal length, as many as the width asks for
        lines = math.ceil(len(legend) / (3 if figure.get_figwidth() < 7 else 5))
        columns = math.ceil(len(legend) / max(1, lines))
    figure.legend(legend.values(), legend.keys(), frameon=False, loc="outside upper center", ncols=max(1, columns))
    return figure
