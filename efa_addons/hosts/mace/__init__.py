"""EFA in MACE: `insert_efa` for existing models, the command `efa-mace-train` for new ones.

Importing this package (which unpickling a MACE model with EFA does, too) makes MACE's own tools aware of EFA: see `hooks`.
"""

from efa_addons.hosts.mace.describe import attended, contributions, cutoff_of, describe, inspect
from efa_addons.hosts.mace.files import load, save
from efa_addons.hosts.mace.hooks import install
from efa_addons.hosts.mace.insert import efa_config, efa_parameters, has_efa, insert_efa, strip_efa, without_efa
from efa_addons.hosts.mace.options import TRAINING_OPTIONS

install()

__all__ = [
    "TRAINING_OPTIONS",
    "attended",
    "contributions",
    "cutoff_of",
    "describe",
    "efa_config",
    "efa_parameters",
    "has_efa",
    "insert_efa",
    "inspect",
    "load",
    "save",
    "strip_efa",
    "without_efa",
]
