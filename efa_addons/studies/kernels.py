"""What a trained block attends to: its attention weights against distance, by frequency and by pair of elements.

The weight that atom n gives to atom n' is W(n, n') = Σ_c w_c(n, n') sinc(ω_c r), w_c = D_qk^(-1/2) Re(q_c conj k_c) /
normalization: what the two atoms are decides the coupling w_c, what lies between them only sinc. Tensor integration has
a kernel for each degree l of Y, with j_l for sinc (`nn.kernels`). Distances are Å, frequencies 1/Å, weights have no unit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy.special import spherical_jn
from torch import nn

from efa_addons.errors import EFAError
from efa_addons.hosts.base import require_efa
from efa_addons.nn.kernels import PairKernels, pair_kernels
from efa_addons.studies.kernel_plot import check_name, plot
from efa_addons.studies.kernel_tables import ALL, LayerKernels, Moments, describe, write_csv

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["LayerKernels", "Moments", "check_name", "describe", "effective_kernels", "plot", "write_csv"]

NUM_BINS = 40


def effective_kernels(
    host: ModuleType, model: nn.Module, structures: Sequence[Atoms], num_bins: int = NUM_BINS
) -> list[LayerKernels]:
    """The kernels of every layer with EFA, in the host's order, and of every degree of Y in it.

    Args:
        host: the adapter, for example `efa_addons.hosts.mace`.
        model: of that host, with EFA.
        structures: all pairs of atoms in each of them are looked at.
        num_bins: of distance, up to the largest one there is.

    Raises:
        EFAError: the model does not attend, or the structures have no pairs.
    """
    require_efa(model, host.has_efa(model), "look at")
    if host.efa_config(model).emulate:
        raise EFAError("this model's EFA is emulated, a control without attention: there are no weights to look at.")
    largest = max((float(atoms.get_all_distances().max()) for atoms in structures if len(atoms) > 1), default=0.0)
    if largest == 0:
        raise EFAError(f"got {len(structures)} structures without a pair of atoms: give some of two atoms or more.")
    edges = np.linspace(0, largest, num_bins + 1)
    found: dict[tuple[str, int], _Tallies] = {}
    for atoms in track(structures, "pairs of atoms", console=Console(stderr=True), transient=True):
        for layer, calls in host.attended(model, [atoms]).items():
            for step, (attention, inputs, positions, batch) in enumerate(calls):
                name = layer if len(calls) == 1 else f"{layer} step {step}"
                kernels = pair_kernels(attention, inputs, positions, batch)
                for degree in range(len(kernels.weights)):
                    tallies = found.setdefault((name, degree), _Tallies(attention.frequencies.detach().cpu().numpy(), edges))
                    tallies.add(kernels, degree, np.array(atoms.symbols), attention.include_self and degree == 0)
    return [tallies.layer(*key, host.cutoff_of(model)) for key, tallies in found.items()]


class _Tallies:
    """Sums over pairs of ones, values and their squares, (3, …), by elements; see `LayerKernels`."""

    def __init__(self, frequencies: np.ndarray, edges: np.ndarray) -> None:
        self.frequencies, self.edges = frequencies.astype(float), edges
        self.num_bins = len(edges) - 1
        self.couplings: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((3, len(frequencies))))
        self.parts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((3, len(frequencies), self.num_bins)))
        self.weights: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((3, self.num_bins)))
        self.own: dict[str, np.ndarray] = defaultdict(lambda: np.zeros((3, 1)))

    def add(self, kernels: PairKernels, degree: int, symbols: np.ndarray, with_own: bool) -> None:
        """The pairs of one structure."""
        elements, different = np.unique(symbols), ~np.eye(len(symbols), dtype=bool)
        for here, there in product(elements, repeat=2):
            pairs = np.outer(symbols == here, symbols == there) & different
            if not pairs.any():
                continue
            name, distances = f"{here}←{there}", kernels.distances[pairs]
            bins = np.clip(np.searchsorted(self.edges, distances, side="right") - 1, 0, self.num_bins - 1)
            couplings, weights = kernels.couplings[degree][:, pairs], kernels.weights[degree][pairs]
            parts = couplings * spherical_jn(degree, np.outer(self.frequencies, distances))
            self.couplings[name] += _powers(couplings).sum(2)
            self.parts[name] += np.stack([_sum_by(bins, values, self.num_bins) for values in _powers(parts)])
            self.weights[name] += _sum_by(bins, _powers(weights), self.num_bins)
        if with_own:
            for here in elements:
                self.own[here] += _powers(kernels.weights[degree].diagonal()[None, symbols == here]).sum(2)

    def layer(self, name: str, degree: int, cutoff: float) -> LayerKernels:
        tallies = []
        for sums in (self.couplings, self.parts, self.weights, self.own):
            everything = {} if sums is self.own else {ALL: sum(sums.values())}
            tallies.append({pair: Moments.of(np.asarray(values)) for pair, values in {**everything, **sums}.items()})
        return LayerKernels(name, degree, cutoff, self.frequencies, self.edges, *tallies)


def _powers(values: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(values), values, values**2])


def _sum_by(bins: np.ndarray, rows: np.ndarray, num_bins: int) -> np.ndarray:
    """rows (R, P) of values that belong to the bins (P,) -> (R, B)."""
    return np.stack([np.bincount(bins, row, num_bins) for row in rows])
