"""What EFA wants to know of a training set, and the data it cannot take."""

from __future__ import annotations

from typing import Any

import torch
from nequip.data import (
    AtomicDataDict,
    CommonDataStatisticsManager,
    DataStatisticsManager,
    EnergyOnlyDataStatisticsManager,
    Mean,
)
from nequip.data.modifier import BaseModifier
from torch import Tensor
from torchmetrics import Metric

from efa_addons.errors import EFAError
from efa_addons.nn.checks import largest_distance, refuse_periodic


class LargestDistance(BaseModifier):
    """Largest interatomic distance (Å) in a batch of structures."""

    def __init__(self) -> None:
        super().__init__(AtomicDataDict.TOTAL_ENERGY_KEY)  # a field of graphs; only its kind is looked at

    def _func(self, data: AtomicDataDict.Type) -> Tensor:
        positions = data[AtomicDataDict.POSITIONS_KEY]
        batch = data.get(AtomicDataDict.BATCH_KEY)
        if batch is None:
            batch = torch.zeros(len(positions), dtype=torch.long, device=positions.device)
        return positions.new_tensor([largest_distance(positions, batch)])

    def __str__(self) -> str:
        return "largest_distance"


class Maximum(Metric):
    """Largest value seen, times a factor."""

    def __init__(self, factor: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.factor = factor
        self.add_state("largest", default=torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, data: Tensor) -> None:
        if data.numel() > 0:
            self.largest = torch.maximum(self.largest, data.max().to(self.largest.dtype))

    def compute(self) -> Tensor:
        return self.factor * self.largest

    def __str__(self) -> str:
        return "max"


def EFADataStatisticsManager(
    dataloader_kwargs: dict[str, Any] | None = None,
    type_names: list[str] | None = None,
    max_length_margin: float = 1.2,
    energy_only: bool = False,
) -> DataStatisticsManager:
    """NequIP's CommonDataStatisticsManager, and two statistics for `efa:`: max_length (Å) and num_atoms_mean.

    stats_manager:
      _target_: efa_addons.hosts.nequip.EFADataStatisticsManager
      type_names: ${model_type_names}
    …
      efa:
        max_length: ${training_data_stats:max_length}
        normalization: ${training_data_stats:num_atoms_mean}

    Args:
        dataloader_kwargs, type_names: as for CommonDataStatisticsManager.
        max_length_margin: factor on the largest interatomic distance of the training set.
        energy_only: of data without forces, by NequIP's EnergyOnlyDataStatisticsManager.
    """
    if not isinstance(max_length_margin, (int, float)) or max_length_margin < 1:
        raise EFAError(f"max_length_margin must be a number, 1 or more, got {max_length_margin!r}.")
    if not isinstance(energy_only, bool):
        raise EFAError(f"energy_only must be true or false, got {energy_only!r}.")
    manager = (EnergyOnlyDataStatisticsManager if energy_only else CommonDataStatisticsManager)(dataloader_kwargs, type_names)
    for name, field, metric in (
        ("max_length", LargestDistance(), Maximum(max_length_margin)),
        ("num_atoms_mean", BaseModifier(AtomicDataDict.NUM_NODES_KEY), Mean()),
    ):
        manager.append(metric)
        manager.fields.append(field)
        manager.names.append(name)
        manager.ignore_nans.append(False)
        manager.per_type.append(False)
        manager.num_metrics += 1
    return manager


class RefusePeriodic(torch.nn.Module):
    """Data transform: an error for structures that are periodic, by their pbc flag.

    NequIP's models do not see that flag. In eager mode a model with EFA refuses edges to periodic images; compiled, it cannot
    look.
    """

    def forward(self, data: AtomicDataDict.Type) -> AtomicDataDict.Type:
        refuse_periodic(data.get(AtomicDataDict.PBC_KEY))
        return data
