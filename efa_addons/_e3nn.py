"""The one place that imports e3nn, so that the core works under 0.4.4 and 0.6 alike."""

from __future__ import annotations

import torch

# e3nn 0.4.4 loads its constants with torch.load, which has refused `slice` since torch 2.6.
torch.serialization.add_safe_globals([slice])

from e3nn import o3  # noqa: E402

__all__ = ["o3"]
