"""EFA in SchNetPack's PaiNN: targets for spktrain's configurations, and functions for models in Python."""

from efa_addons.hosts.painn.describe import attended, contributions, cutoff_of, describe, inspect
from efa_addons.hosts.painn.files import load, save
from efa_addons.hosts.painn.finetune import InsertEFA
from efa_addons.hosts.painn.insert import efa_config, efa_parameters, has_efa, insert_efa, strip_efa, without_efa
from efa_addons.hosts.painn.model import PaiNNEFA

__all__ = [
    "InsertEFA",
    "PaiNNEFA",
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
