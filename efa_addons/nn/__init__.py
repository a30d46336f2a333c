"""Modules of the core: the attention, the block that hosts insert, and layouts in and out."""

from efa_addons.nn.attention import EuclideanFastAttention
from efa_addons.nn.block import EFABlock
from efa_addons.nn.checks import nan_if_periodic, refuse_periodic

__all__ = ["EFABlock", "EuclideanFastAttention", "nan_if_periodic", "refuse_periodic"]
