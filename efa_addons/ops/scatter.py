"""Sums of rows by an index: torch's index_add or, where it is asked for, torch_scatter's scatter."""

from __future__ import annotations

import importlib
import os

from torch import Tensor

from efa_addons.errors import EFAError, how_to_install
from efa_addons.ops.tracing import tracing

VARIABLE = "EFA_ADDONS_SCATTER"
use_torch_scatter = os.environ.get(VARIABLE, "0") not in ("", "0")  # read once: torch.compile would ask again and again


def sum_rows(x: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """(N, ...) -> (num_rows, ...), row i the sum of the rows of x whose index (N,) is i. Twice differentiable.

    With the environment variable EFA_ADDONS_SCATTER=1 by torch_scatter.scatter(reduce="sum"), in eager mode. The package's
    segment_csr and segment_coo are not used: they have no second derivative, and training on forces would silently be wrong.

    Raises:
        EFAError: torch_scatter is asked for and not installed.
    """
    if not use_torch_scatter or tracing():
        return x.new_zeros([num_rows, *x.shape[1:]]).index_add(0, index, x)
    try:
        scatter = importlib.import_module("torch_scatter").scatter
    except ImportError as error:
        raise EFAError(
            f"{VARIABLE}=1 asks for torch_scatter, which cannot be imported ({error}): {how_to_install('scatter')}; or "
            "unset the variable."
        ) from error
    return scatter(x, index, dim=0, dim_size=num_rows, reduce="sum")
