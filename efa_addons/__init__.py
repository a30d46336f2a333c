"""Euclidean fast attention for the force fields people already use: long range for MACE (NequIP and PaiNN to follow)."""

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError, EFAWarning
from efa_addons.nn import EFABlock, EuclideanFastAttention

__version__ = "0.1.0"

__all__ = ["EFABlock", "EFAConfig", "EFAError", "EFAWarning", "EuclideanFastAttention", "__version__"]
