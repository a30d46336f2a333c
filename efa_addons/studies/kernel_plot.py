"""The picture of what a trained block attends to: a row of three panels for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import spherical_jn

from efa_addons.errors import EFAError
from efa_addons.studies.cumulene import require
from efa_addons.studies.kernel_tables import ALL, LayerKernels, Moments

LOOKS = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "v"))  # Okabe-Ito
GREY = ("0.6", ".")
GAP = 0.15  # of the largest distance: points farther apart are not joined by a line


def check_name(path: Path) -> None:
    """Raises where matplotlib writes no file of this name."""
    formats = require("matplotlib.figure", "data").Figure().canvas.get_supported_filetypes()
    if path.suffix.removeprefix(".") not in formats:
        raise EFAError(f"{path} is to be a picture: it must end in one of {', '.join(f'.{name}' for name in sorted(formats))}.")


def plot(path: Path | str, layers: Sequence[LayerKernels]) -> None:
    """Left: the couplings by frequency. Middle: their mean times sinc (lines) and the means at each distance (dots).

    Right: the weights by pair of elements. Bars and bands: one standard deviation over the pairs. Of more than four pairs of
    elements the four of the largest weights are shown, and the mean of all pairs in grey.
    """
    with require("matplotlib", "data").rc_context({"font.size": 9}):  # hosts have settings of their own
        _draw(layers).savefig(path, dpi=130)


def _draw(layers: Sequence[LayerKernels]) -> Any:
    figure = require("matplotlib.figure", "data").Figure(figsize=(11.0, 0.9 + 2.6 * len(layers)), layout="constrained")
    panels = figure.subplots(len(layers), 3, sharex="col", squeeze=False, width_ratios=(0.5, 1, 1))
    looks = _looks(layers)
    for layer, (left, middle, right) in zip(layers, panels, strict=True):
        _by_frequency(left, middle, layer)
        _by_elements(right, layer, looks)
        left.set_ylabel(layer.name)
        for axes in (left, middle, right):
            _finish(axes)
        for axes in (middle, right):
            _mark_cutoff(axes, layer)
    shape = "j$_l$(ω r)" if any(layer.degree for layer in layers) else "sinc(ω r)"
    titles = ("coupling w", f"w {shape}: mean w (lines), pairs at r (dots)", "sum over frequencies: weight, by elements")
    for axes, title in zip(panels[0], titles, strict=True):
        axes.set_title(title, fontsize="medium")
    for axes, label in zip(panels[-1], ("frequency ω (1/Å)", *2 * ["distance r of two atoms (Å)"]), strict=True):
        axes.set_xlabel(label)
    handles = {label: line for row in panels for line, label in zip(*row[2].get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), frameon=False, loc="outside upper right", ncols=len(handles))
    return figure


def _looks(layers: Sequence[LayerKernels]) -> dict[str, tuple[str, str]]:
    """Colour and marker of the pairs of elements, the same in all layers."""
    sizes: dict[str, float] = {}
    for layer in layers:
        squares = {pair: layer.weights[pair].squares.sum() / layer.weights[pair].number.sum() for pair in layer.pairs}
        largest = max(squares.values()) or 1.0
        for pair, square in squares.items():
            sizes[pair] = sizes.get(pair, 0.0) + square / largest
    chosen = sorted(sizes, key=lambda pair: sizes[pair], reverse=True)[: len(LOOKS)]
    looks = dict(zip(chosen, LOOKS, strict=False))
    return looks if len(chosen) == len(sizes) else {ALL: GREY, **looks}


def _by_frequency(left: Any, middle: Any, layer: LayerKernels) -> None:
    middle.sharey(left)
    middle.tick_params(labelleft=False)
    distances = np.linspace(0, layer.edges[-1], 300)
    couplings, parts = layer.couplings[ALL], layer.parts[ALL]
    sizes = np.abs(layer.frequencies)
    # without the yellow end, which is hard to see
    colors = require("matplotlib", "data").colormaps["viridis"](0.92 * sizes / max(sizes.max(), 1e-9))
    for c, (omega, color) in enumerate(zip(layer.frequencies, colors, strict=True)):
        mean, std = couplings.mean[c], couplings.std[c]
        left.errorbar([omega], [mean], [std], color=color, marker="o", markersize=5, linewidth=1.4)
        middle.plot(distances, mean * spherical_jn(layer.degree, omega * distances), color=color, linewidth=1.4)
        middle.plot(_centres(layer), parts.mean[c], color=color, marker="o", markersize=2.8, linestyle="")


def _by_elements(axes: Any, layer: LayerKernels, looks: dict[str, tuple[str, str]]) -> None:
    for pair, (color, marker) in looks.items():
        if pair in layer.weights:
            r, mean, std = _joined(_centres(layer), layer.weights[pair], GAP * layer.edges[-1])
            axes.fill_between(r, mean - std, mean + std, color=color, alpha=0.15, linewidth=0)
            label = "all pairs" if pair == ALL else pair.replace("←", " ← ")
            axes.plot(r, mean, color=color, marker=marker, markersize=4, linewidth=1.3, label=label)
    for element, moments in layer.own.items():
        color, _ = looks.get(f"{element}←{element}", GREY)
        axes.errorbar([0], moments.mean, moments.std, color=color, marker="D", markersize=5.5)
    if layer.own:
        axes.plot([], [], color="0.3", marker="D", markersize=5.5, linestyle="", label="an atom itself")


def _centres(layer: LayerKernels) -> np.ndarray:
    return (layer.edges[:-1] + layer.edges[1:]) / 2


def _joined(centres: np.ndarray, moments: Moments, gap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances, means and deviations where there are any; a NaN interrupts the line where the next ones are far."""
    there = moments.number > 0
    found = np.stack([centres[there], moments.mean[there], moments.std[there]])
    r, mean, std = np.insert(found, np.flatnonzero(np.diff(found[0]) > gap) + 1, np.nan, axis=1)
    return r, mean, std


def _finish(axes: Any) -> None:
    axes.axhline(0, color="0.4", linewidth=0.8, zorder=1)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _mark_cutoff(axes: Any, layer: LayerKernels) -> None:
    """The distance up to which the host's local layers see."""
    if layer.cutoff < layer.edges[-1]:
        axes.axvline(layer.cutoff, color="0.4", linewidth=1, linestyle="--", zorder=1)
        place = {
            "xy": (layer.cutoff, 0),
            "xycoords": ("data", "axes fraction"),
            "xytext": (3, 3),
            "textcoords": "offset points",
        }
        axes.annotate("cutoff", fontsize="small", color="0.3", **place)
