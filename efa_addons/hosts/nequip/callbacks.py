"""Lightning callbacks."""

from __future__ import annotations

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from nequip.data import AtomicDataDict
from nequip.train import NequIPLightningModule
from torch import nn

from efa_addons.errors import EFAError
from efa_addons.hosts import base
from efa_addons.hosts.nequip.insert import efa_layers, network_of


class EFAContributions(Callback):
    """Logs efa_contribution/layer0, …: norm per atom of EFA's output over that of the local layer's, on a validation batch.

    callbacks:
      - _target_: efa_addons.hosts.nequip.EFAContributions
        frequency: 5

    Args:
        frequency: number of epochs between logs.
    """

    def __init__(self, frequency: int = 1) -> None:
        if frequency < 1:
            raise EFAError(f"frequency must be 1 or more, got {frequency}.")
        self.frequency = frequency

    def on_validation_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: NequIPLightningModule,
        outputs: object,
        batch: AtomicDataDict.Type,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """"""
        if trainer.sanity_checking or batch_idx or dataloader_idx or trainer.current_epoch % self.frequency:
            return
        for name, (attended, local) in contributions(pl_module.model, batch).items():
            pl_module.log(f"efa_contribution/{name}", attended / local, on_epoch=True, batch_size=1, add_dataloader_idx=False)


def contributions(model: nn.Module, data: AtomicDataDict.Type) -> dict[str, tuple[float, float]]:
    """For each layer with EFA: the norms per atom, averaged, of EFA's output and of the local layer's.

    Args:
        model: a NequIP model with EFA, or a ModuleDict with one. It runs in eager mode, also where it trains compiled.
        data: structures with neighbor lists.
    """
    graph_model = next(iter(model.values())) if isinstance(model, nn.ModuleDict) else model
    layers = efa_layers(graph_model)
    base.require_efa(graph_model, bool(layers), "")
    network = network_of(graph_model)

    def run() -> None:
        with torch.no_grad():
            network({key: data[key] for key in graph_model.model_input_fields if key in data})

    return base.contributions(layers, run, lambda output: output[AtomicDataDict.NODE_FEATURES_KEY])
