"""Euclidean fast attention for the force fields people already use: long range for MACE, NequIP and PaiNN."""

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError, EFAWarning
from efa_addons.nn import EFABlock, EuclideanFastAttention
from efa_addons.version import __version__

__all__ = ["EFABlock", "EFAConfig", "EFAError", "EFAWarning", "EuclideanFastAttention", "__version__"]
