"""Between flat features of a host (e3nn Irreps, mul_ir or ir_mul) and the core's (N, K, F)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from efa_addons._e3nn import Irreps
from efa_addons.errors import EFAError
from efa_addons.nn.features import Component, FeatureType, WithConstants
from efa_addons.ops.scatter import take

LAYOUTS = ("mul_ir", "ir_mul")


def feature_type(irreps: Irreps | str) -> FeatureType:
    """The smallest feature type that holds `irreps`: F is the largest multiplicity, rarer irreps are zero-filled."""
    counts: dict[tuple[int, int], int] = {}
    for mul, ir in Irreps(irreps):
        counts[(ir.l, ir.p)] = counts.get((ir.l, ir.p), 0) + mul
    if not counts:
        raise EFAError(f"irreps must not be empty, got '{irreps}'.")
    pseudotensors = any(parity != (-1) ** degree for degree, parity in counts)
    return FeatureType(max(degree for degree, _ in counts), pseudotensors, max(counts.values()))


def _places(irreps: Irreps | str, layout: str) -> list[tuple[Component, int]]:
    """(component, feature) of each entry of the flat features, in their order."""
    if layout not in LAYOUTS:
        raise EFAError(f"layout must be one of {', '.join(LAYOUTS)}, got '{layout}'.")
    places: list[tuple[Component, int]] = []
    first: dict[tuple[int, int], int] = {}
    for mul, ir in Irreps(irreps):
        start = first.get((ir.l, ir.p), 0)
        first[(ir.l, ir.p)] = start + mul
        features, orders = range(start, start + mul), range(2 * ir.l + 1)
        if layout == "mul_ir":
            places += [((ir.l, ir.p, m), f) for f in features for m in orders]
        else:
            places += [((ir.l, ir.p, m), f) for m in orders for f in features]
    return places


class Pack(WithConstants):
    """Flat features (N, irreps.dim) -> (N, K, F)."""

    if TYPE_CHECKING:  # TorchScript would stumble over these
        index: Tensor

    def __init__(self, irreps: Irreps | str, layout: str = "mul_ir") -> None:
        super().__init__()
        self.kind = feature_type(irreps)
        self.num_components = self.kind.num_components
        self.num_features = self.kind.num_features
        places = _places(irreps, layout)
        self.dim = len(places)
        entry = {place: i for i, place in enumerate(places)}
        index = [entry.get((c, f), self.dim) for c in self.kind.components for f in range(self.num_features)]
        self.fills = self.dim in index
        self.add_constant("index", torch.tensor(index, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.dim:
            raise EFAError(f"features must have the shape (atoms, {self.dim}), got {list(x.shape)}.")
        if self.fills:
            x = torch.cat([x, torch.zeros_like(x[:, :1])], dim=1)
        return take(x, 1, self.index).view(-1, self.num_components, self.num_features)


class Unpack(WithConstants):
    """(N, K, F) -> flat features (N, irreps.dim)."""

    if TYPE_CHECKING:  # TorchScript would stumble over these
        index: Tensor

    def __init__(self, irreps: Irreps | str, layout: str = "mul_ir") -> None:
        super().__init__()
        self.kind = feature_type(irreps)
        component = {c: i for i, c in enumerate(self.kind.components)}
        index = [component[c] * self.kind.num_features + f for c, f in _places(irreps, layout)]
        self.add_constant("index", torch.tensor(index, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return take(x.flatten(1), 1, self.index)
