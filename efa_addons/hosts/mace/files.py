"""Models in files: MACE's own `.model` and the portable `.efa`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import nn

from efa_addons.errors import EFAError
from efa_addons.hosts.mace.portable import from_portable, to_portable
from efa_addons.portable import SUFFIX, read_portable, write_portable


def load(path: Path | str) -> nn.Module:
    """A model from a file in the portable format or a MACE `.model` file (a pickle: reading it runs code), on the CPU.

    Raises:
        EFAError: the file holds no model, or one that the installed MACE cannot build.
    """
    portable = read_portable(path, "mace")
    if portable is not None:
        return from_portable(portable)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* looks like a TorchScript archive")  # which the error below says better
        model = torch.load(path, map_location="cpu", weights_only=False)
    if isinstance(model, torch.jit.ScriptModule):
        raise EFAError(f"{path} is a compiled model: give the .model file it was made from.")
    if not isinstance(model, nn.Module):
        raise EFAError(f"{path} holds a {type(model).__name__}, not a model: give a .model file (checkpoints hold no model).")
    return model


def save(model: nn.Module, path: Path | str) -> None:
    """Writes the portable format where the name ends in `.efa`, and otherwise a `.model` file as MACE does."""
    if Path(path).suffix == SUFFIX:
        write_portable(to_portable(model), path)
    else:
        torch.save(model, path)
