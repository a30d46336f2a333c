"""EFA in NequIP: targets for NequIP's configuration files, and functions for models in Python."""

from efa_addons.hosts.nequip.build import InsertEFA, NequIPEFAModel, StripEFA
from efa_addons.hosts.nequip.calculator import NequIPEFACalculator
from efa_addons.hosts.nequip.callbacks import EFAContributions
from efa_addons.hosts.nequip.data import EFADataStatisticsManager, RefusePeriodic
from efa_addons.hosts.nequip.describe import attended, contributions, cutoff_of, describe, inspect
from efa_addons.hosts.nequip.files import load, save
from efa_addons.hosts.nequip.insert import efa_config, efa_parameters, has_efa, insert_efa, strip_efa, without_efa
from efa_addons.hosts.nequip.optimizer import EFAParamGroups

__all__ = [
    "EFAContributions",
    "EFADataStatisticsManager",
    "EFAParamGroups",
    "InsertEFA",
    "NequIPEFACalculator",
    "NequIPEFAModel",
    "RefusePeriodic",
    "StripEFA",
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
