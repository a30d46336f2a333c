"""EFA in a parameter group of its own."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from efa_addons.errors import EFAWarning, unknown_names
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
        efa, base: options of the optimizer for the two groups; what is not given is the optimizer's own. Of a model without EFA
            there is one group, with a warning.

    Raises:
        EFAError: an option that no optimizer has.
    """
    for given in (efa, base):
        _refuse_unknown(given or {})
    new = efa_parameters(model)
    if not new:
        warnings.warn("EFAParamGroups makes one group of all parameters: the model has no EFA.", EFAWarning, stacklevel=2)
    ids = {id(parameter) for parameter in new.values()}
    others = [p for p in model.parameters() if id(p) not in ids and p.requires_grad]
    groups = [{"params": list(new.values()), **dict(efa or {})}, {"params": others, **dict(base or {})}]
    return [group for group in groups if group["params"]]


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """Of any optimizer: the one that is to be is not known here, and torch takes whatever a group has."""
    known: set[str] = set()
    classes = [Optimizer]
    for each in classes:
        known.update(inspect.signature(each).parameters)
        classes += each.__subclasses__()
    known -= {"params", "defaults"}
    if unknown := set(options) - known:
        raise unknown_names("option of an optimizer", unknown, known)
