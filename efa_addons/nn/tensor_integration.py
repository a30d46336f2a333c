"""Coupling of the attended values with the spherical harmonics of the integration directions (Eq. 23)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from efa_addons.errors import EFAError
from efa_addons.nn.features import FeatureType, Irrep, WithConstants
from efa_addons.ops.clebsch_gordan import clebsch_gordan
from efa_addons.ops.scatter import sum_rows, take


class TensorIntegration(WithConstants):
    """out = Σ over paths (l_Y, l_v -> l_out) of w C(l_Y, l_v, l_out) Z: couples once per atom, the directions already summed.

    Args:
        max_degree_sph: L_Y, highest degree of Y(u); degree l has parity (-1)^l.
        source: type of the attended values.
        max_degree: L_out, at most L_Y + L_v.
        include_pseudotensors: keep paths that lead to pseudotensors.
        parametrize_coupling_paths: one trained weight for each path and feature; otherwise the paths are summed as they are.

    Input Z (N, (L_Y+1)^2, K_v, F), output (N, K_out, F) of type `target`.
    """

    if TYPE_CHECKING:  # TorchScript would stumble over these
        place: Tensor
        path: Tensor
        value: Tensor

    def __init__(
        self,
        max_degree_sph: int,
        source: FeatureType,
        max_degree: int,
        include_pseudotensors: bool,
        parametrize_coupling_paths: bool = False,
    ) -> None:
        super().__init__()
        if max_degree > max_degree_sph + source.max_degree:
            raise EFAError(
                f"ti_max_degree={max_degree} cannot be reached: coupling degrees up to {max_degree_sph} (ti_max_degree_sph) "
                f"and {source.max_degree} (values) gives at most {max_degree_sph + source.max_degree}."
            )
        if not source.pseudotensors and 0 in (max_degree_sph, source.max_degree, max_degree):
            include_pseudotensors = False  # no path leads to one
        self.target = FeatureType(max_degree, include_pseudotensors, source.num_features)
        paths: list[tuple[int, Irrep, Irrep]] = []
        place, path, value = [], [], []
        for degree in range(max_degree_sph + 1):
            for first, irrep in _blocks(source):
                for out, irrep_out in _blocks(self.target):
                    allowed = abs(degree - irrep[0]) <= irrep_out[0] <= degree + irrep[0]
                    if not allowed or (-1) ** degree * irrep[1] != irrep_out[1]:
                        continue
                    table = torch.as_tensor(clebsch_gordan(degree, irrep[0], irrep_out[0]))
                    for a, b, c in (table.abs() > 1e-14).nonzero().tolist():
                        row = (degree**2 + a) * source.num_components + first + b
                        place.append(row * self.target.num_components + out + c)
                        path.append(len(paths))
                        value.append(table[a, b, c].item())
                    paths.append((degree, irrep, irrep_out))
        self.paths = paths
        self.num_rows = (max_degree_sph + 1) ** 2 * source.num_components
        self.num_out = self.target.num_components
        self.add_constant("place", torch.tensor(place, dtype=torch.long))
        self.add_constant("path", torch.tensor(path, dtype=torch.long))
        self.add_constant("value", torch.tensor(value, dtype=torch.float64))
        self.weight: nn.Parameter | None = None
        if parametrize_coupling_paths:
            # Unit variance per output irrep: divide by the number of paths that end in it.
            ends = [irrep_out for _, _, irrep_out in paths]
            spread = torch.tensor([ends.count(end) ** -0.5 for end in ends])
            self.weight = nn.Parameter(torch.randn(len(paths), source.num_features) * spread[:, None])

    def forward(self, z: Tensor) -> Tensor:
        rows = z.flatten(1, 2)
        if self.weight is None:
            table = sum_rows(self.value, self.place, self.num_rows * self.num_out)
            return torch.matmul(table.view(self.num_rows, self.num_out).t(), rows)
        entries = take(self.weight, 0, self.path) * self.value.unsqueeze(1)
        features = self.weight.shape[1]
        table = sum_rows(entries, self.place, self.num_rows * self.num_out)
        per_feature = table.view(self.num_rows, self.num_out, features).permute(2, 0, 1)
        return torch.bmm(rows.permute(2, 0, 1), per_feature).permute(1, 2, 0)


def _blocks(kind: FeatureType) -> list[tuple[int, Irrep]]:
    """(index of the first component, irrep) of each irrep."""
    found, first = [], 0
    for irrep in kind.irreps:
        found.append((first, irrep))
        first += 2 * irrep[0] + 1
    return found
