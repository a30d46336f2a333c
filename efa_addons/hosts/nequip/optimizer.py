"""EFA in a parameter group of its own."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer

from efa_addons.errors import EFAWarning, unknown_names
from efa_addons.hosts.nequip.insert import efa_parameters

NEAR = 0.75  # likeness of a misspelt name to the name


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
        EFAError: an option that is nearly one of an optimizer. One of an optimizer that is not imported yet cannot be told from
            one that none has: it is warned of.
    """
    efa, base = (_plain(given or {}) for given in (efa, base))
    for given in (efa, base):
        _refuse_unknown(given)
    new = efa_parameters(model)
    if not new:
        warnings.warn("EFAParamGroups makes one group of all parameters: the model has no EFA.", EFAWarning, stacklevel=2)
    ids = {id(parameter) for parameter in new.values()}
    others = [p for p in model.parameters() if id(p) not in ids and p.requires_grad]
    groups = [{"params": list(new.values()), **efa}, {"params": others, **base}]
    return [group for group in groups if group["params"]]


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    """Of any optimizer: NequIP imports the one that is to be after this, and torch takes whatever a group has."""
    known: set[str] = {"name"}  # of a group, for Lightning's LearningRateMonitor
    classes = [Optimizer]
    for each in classes:
        known.update(inspect.signature(each).parameters)
        classes += each.__subclasses__()
    known -= {"params", "defaults"}
    unknown = set(options) - known
    if misspelt := [name for name in unknown if difflib.get_close_matches(name, known, n=1, cutoff=NEAR)]:
        raise unknown_names("option of an optimizer", misspelt, known)
    if unknown:
        warnings.warn(
            f"EFAParamGroups: {', '.join(sorted(unknown))}: no optimizer of torch has these options. They are handed on to "
            "yours, which must know them: torch ignores what it does not know.",
            EFAWarning,
            stacklevel=3,
        )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without containers of OmegaConf, which would go into checkpoints."""
    return {name: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for name, value in options.items()}
