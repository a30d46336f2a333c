"""EFA in a parameter group of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from efa_addons.errors import EFAError
from efa_addons.hosts.nequip.insert import efa_parameters


def EFAParamGroups(
    model: nn.Module, efa: Mapping[str, Any] | None = None, base: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Groups for the optimizer: EFA's parameters, and all others.

    optimizer:
      _target_: torch.optim.Adam
      lr: 0.01
      param_groups:
        _target_: efa_addons.hosts.nequip.EFAParamGroups
        efa: {lr: 0.005, weight_decay: 0.0}

    Args:
        model: what is trained.
        efa, base: options of the optimizer for the two groups; what is not given is the optimizer's own.
    """
    new = efa_parameters(model)
    if not new:
        raise EFAError("EFAParamGroups needs a model with EFA, and this one has none.")
    ids = {id(parameter) for parameter in new.values()}
    others = [p for p in model.parameters() if id(p) not in ids and p.requires_grad]
    groups = [{"params": list(new.values()), **dict(efa or {})}]
    return groups + ([{"params": others, **dict(base or {})}] if others else [])
