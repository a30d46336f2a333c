"""The numbers of `kernels`: what is kept of the pairs of atoms, in a file and in words."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

import numpy as np

ALL = "all"  # pairs of any elements
COLUMNS = ("layer", "degree", "quantity", "atoms", "frequency", "from", "to", "number", "mean", "std")


class Moments(NamedTuple):
    """How many values there are, their mean and their standard deviation (NaN where there are none)."""

    number: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, sums: np.ndarray) -> Moments:
        """From the sums (3, …) of ones, values and their squares."""
        number, total, squares = sums
        with np.errstate(invalid="ignore"):
            mean, square = total / number, squares / number
        variance = square - mean**2
        return cls(number.astype(int), mean, np.sqrt(np.where(variance < 1e-13 * square, 0, variance)))  # or it is rounding

    @property
    def squares(self) -> np.ndarray:
        """The sum of the squared values."""
        return np.nan_to_num(self.number * (self.mean**2 + self.std**2))


@dataclass(frozen=True)
class LayerKernels:
    """The kernels of one layer and one degree of Y over all pairs of different atoms, by elements as in "C←H": C attends to H.

    The sign of a weight means something only beside other weights of the same layer: the values it multiplies have signs, too.
    """

    layer: str
    degree: int  # l of Y; 0 is all there is without tensor integration
    cutoff: float  # of the host's local layers, Å
    frequencies: np.ndarray  # ω_c (C,), 1/Å
    edges: np.ndarray  # of the bins of distance (B+1,), Å
    couplings: dict[str, Moments]  # w_c by frequency (C,)
    parts: dict[str, Moments]  # w_c j_l(ω_c r) by frequency and bin (C, B)
    weights: dict[str, Moments]  # their sum over frequencies, W, by bin (B,)
    own: dict[str, Moments]  # W(n, n) by element, (1,); empty for l > 0 and without the self term

    @property
    def name(self) -> str:
        return self.layer.replace("layer", "layer ") + (f", l = {self.degree}" if self.degree else "")

    @property
    def pairs(self) -> list[str]:
        """The pairs of elements."""
        return [pair for pair in self.weights if pair != ALL]


def describe(layer: LayerKernels) -> str:
    """One line: how much of the attention to other atoms goes where the local layer does not see."""
    squares = layer.weights[ALL].squares
    beyond = squares[layer.edges[:-1] >= layer.cutoff].sum() / max(squares.sum(), np.finfo(float).tiny)
    return (
        f"{layer.name}: {len(layer.frequencies)} frequencies to {np.abs(layer.frequencies).max():.3g} 1/Å, "
        f"{beyond:.0%} of the squared weights of other atoms beyond the cutoff of {layer.cutoff:.3g} Å"
    )


def write_csv(path: Path | str, layers: Sequence[LayerKernels]) -> None:
    """A row for each coupling, each weight (of one frequency, and of all) in a bin of distance, and each weight of itself."""
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for layer in layers:
            writer.writerows([layer.layer, layer.degree, *row] for row in _rows(layer))


def _rows(layer: LayerKernels) -> Iterator[list[str | int]]:
    """Quantity, elements, where, and the moments there unless there is nothing."""
    frequencies = [f"{omega:.6g}" for omega in layer.frequencies]
    bins = [(f"{low:.6g}", f"{high:.6g}") for low, high in pairwise(layer.edges)]
    for quantity, places, found in (
        ("coupling", [(omega, "", "") for omega in frequencies], layer.couplings),
        ("weight of one frequency", [(omega, *ends) for omega, ends in product(frequencies, bins)], layer.parts),
        ("weight", [("", *ends) for ends in bins], layer.weights),
        ("own weight", [("", "0", "0")], layer.own),
    ):
        for atoms, moments in found.items():
            for place, number, mean, std in zip(places, *(values.flat for values in moments), strict=True):
                if number:
                    yield [quantity, atoms, *place, int(number), f"{mean:.6g}", f"{std:.6g}"]
