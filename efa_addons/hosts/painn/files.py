"""Models in files: SchNetPack's own best_model."""

from __future__ import annotations

from pathlib import Path

import torch
from schnetpack.utils import load_model
from torch import nn

from efa_addons.errors import EFAError
from efa_addons.portable import SUFFIX


def load(path: Path | str) -> nn.Module:
    """A model from a best_model (a pickle: reading it runs code), on the CPU.

    Raises:
        EFAError: the file holds something else.
    """
    try:
        model = load_model(str(path))
    except (AttributeError, RuntimeError) as error:  # a task, a checkpoint, or a TorchScript archive
        raise EFAError(
            f"{path} is no best_model of spktrain ({error}): give the file of that name in the run's folder."
        ) from error
    if not hasattr(model, "representation") or isinstance(model, torch.jit.ScriptModule):
        raise EFAError(
            f"{path} holds a {type(model).__name__}: give the best_model of a run of spktrain, not the deployed one."
        )
    return model


def save(model: nn.Module, path: Path | str) -> None:
    """Writes a best_model as spktrain does."""
    if Path(path).suffix == SUFFIX:
        raise EFAError(
            f"{path}: there is no portable format for painn, because a SchNetPack model keeps no description from which it "
            f"could be built again. Give a name that does not end in {SUFFIX}."
        )
    torch.save(model, path)
