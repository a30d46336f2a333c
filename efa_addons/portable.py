"""The portable format: settings and weights of a model in one file of plain values, for any host.

A pickled model holds the classes of the versions that wrote it and runs code when it is read. This file holds numbers, text and
tensors only (`torch.load(weights_only=True)`), from which the installed versions build the model again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from efa_addons.errors import EFAError
from efa_addons.version import __version__

SUFFIX = ".efa"
FORMAT = 1  # raised when an older efa_addons could not read what is written


@dataclass(frozen=True)
class PortableModel:
    """What a file in the portable format holds.

    Args:
        host: "mace", …
        host_version: the host's version that wrote it.
        host_config: what the host needs to build the model without EFA: numbers, text, lists, tensors.
        efa_config: `EFAConfig.to_dict()`; None: a model without EFA.
        state_dict: all weights.
    """

    host: str
    host_version: str
    host_config: dict[str, Any]
    efa_config: dict[str, Any] | None
    state_dict: dict[str, Tensor]
    efa_addons_version: str = __version__
    format: int = field(default=FORMAT)


def write_portable(model: PortableModel, path: Path | str) -> None:
    """Writes the file."""
    torch.save({"efa_addons": asdict(model)}, path)


def read_portable(path: Path | str, host: str) -> PortableModel | None:
    """The contents of a file, on the CPU; None for one in another format.

    Raises:
        EFAError: a file for another host, or from a later version whose format this one does not know.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # what torch raises for its own and other formats differs between versions
        return None
    if not isinstance(content, dict) or "efa_addons" not in content:
        return None
    entries = content["efa_addons"]
    if entries["format"] > FORMAT:
        raise EFAError(
            f"{path} was written by efa_addons {entries['efa_addons_version']} in format {entries['format']}, and efa_addons "
            f"{__version__} knows formats up to {FORMAT}: install a later efa_addons."
        )
    if entries["host"] != host:
        raise EFAError(f"{path} holds a model of {entries['host']}, not {host}: give --host {entries['host']}.")
    return PortableModel(**entries)
