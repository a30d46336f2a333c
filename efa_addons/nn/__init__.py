"""Modules of the core: the attention, the block that hosts insert, and layouts in and out."""

from efa_addons.nn.attention import EuclideanFastAttention
from efa_addons.nn.block import EFABlock
from efa_addons.nn.checks import refuse_periodic

__all__ = ["EFABlock", "EuclideanFastAttention", "refuse_periodic"]
