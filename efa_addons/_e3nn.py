"""The one place that imports e3nn, so that the core works under 0.4.4 and 0.6 alike."""

from __future__ import annotations

import torch

# e3nn 0.4.4 loads its constants with torch.load, which has refused `slice` since torch 2.6.
torch.serialization.add_safe_globals([slice])

# Not from e3nn.o3, whose other parts (sympy) NequIP's packager cannot take along.
from e3nn.o3._irreps import Irreps  # noqa: E402
from e3nn.o3._spherical_harmonics import spherical_harmonics  # noqa: E402

__all__ = ["Irreps", "spherical_harmonics"]
