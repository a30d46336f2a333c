"""Models in files: NequIP's checkpoints and packages."""

from __future__ import annotations

from pathlib import Path

from nequip.model import ModelFromCheckpoint, ModelFromPackage
from nequip.utils.global_state import set_global_state
from torch import nn

from efa_addons.errors import EFAError


def load(path: Path | str) -> nn.Module:
    """A model from a checkpoint (.ckpt) or a package (.nequip.zip), on the CPU and in eager mode.

    Raises:
        EFAError: another kind of file, or several models in one.
    """
    builders = {".ckpt": ModelFromCheckpoint, ".zip": ModelFromPackage}
    builder = builders.get(Path(path).suffix)
    if builder is None:
        raise EFAError(f"{path} is neither a checkpoint (.ckpt) nor a package (.nequip.zip) of NequIP.")
    set_global_state(allow_tf32=False)
    model = builder(str(path))
    if isinstance(model, nn.ModuleDict):
        if len(model) != 1:
            raise EFAError(f"{path} holds the models {', '.join(model)}: load one of them with NequIP's own functions.")
        (model,) = model.values()
    return model.eval()


def save(model: nn.Module, path: Path | str) -> None:
    """NequIP's files are written by its own programs.

    Raises:
        EFAError: always, with the way to go.
    """
    raise EFAError(
        f"{path} is not written: NequIP's files come from its own programs. Train with the target "
        "efa_addons.hosts.nequip.InsertEFA (or StripEFA), then nequip-package build; see docs/hosts/nequip.md."
    )
