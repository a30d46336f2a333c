"""Lightning callbacks."""

from __future__ import annotations

import math
import warnings

import lightning
from lightning.pytorch.callbacks import Callback
from nequip.data import AtomicDataDict
from nequip.train import NequIPLightningModule

from efa_addons.errors import EFAError, EFAWarning
from efa_addons.hosts.nequip.describe import contributions
from efa_addons.hosts.nequip.insert import has_efa


class EFAContributions(Callback):
    """Logs efa_contribution/layer0, …: norm per atom of EFA's output over that of the local layer's, on a validation batch.

    callbacks:
      - _target_: efa_addons.hosts.nequip.EFAContributions
        frequency: 5

    Args:
        frequency: number of epochs between logs. The ratio is not a number where the local layer says nothing: no atom of the
            batch has a neighbor. Of a model without EFA nothing is logged, with a warning.
    """

    def __init__(self, frequency: int = 1) -> None:
        if frequency < 1:
            raise EFAError(f"frequency must be 1 or more, got {frequency}.")
        self.frequency = frequency
        self._last: int | None = None

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
        if trainer.sanity_checking or batch_idx or dataloader_idx:
            return
        if self._last is not None and 0 < trainer.current_epoch - self._last < self.frequency:
            return
        self._last = trainer.current_epoch
        if not has_efa(pl_module.model):
            warnings.warn("EFAContributions has nothing to log: the model has no EFA.", EFAWarning, stacklevel=2)
            return
        for name, (attended, local) in contributions(pl_module.model, batch).items():
            ratio = attended / local if local > 0 else math.nan
            pl_module.log(f"efa_contribution/{name}", ratio, on_epoch=True, batch_size=1, add_dataloader_idx=False)
