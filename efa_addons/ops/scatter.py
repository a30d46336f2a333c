"""Rows by an index: their sums, their copies and their places, with derivatives of every order.

Traces have gather and scatter instead of index_select, index_copy and index_add, and the derivatives of these are these again:
Inductor turns index_add, the derivative of index_select, into programs that write beyond their tensors on a CPU with several
threads (torch 2.13, https://github.com/pytorch/pytorch/issues/191837), and leaves scatter_add to torch there (its option
cpp.fallback_scatter_reduce_sum, on by default).
"""

from __future__ import annotations

import importlib
import os

import torch
from torch import Tensor

from efa_addons.errors import EFAError, how_to_install
from efa_addons.ops.tracing import tracing

VARIABLE = "EFA_ADDONS_SCATTER"
use_torch_scatter = os.environ.get(VARIABLE, "0") not in ("", "0")  # read once: torch.compile would ask again and again


def take(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """x with entry i along dim the one that index (N,) names."""
    if torch.jit.is_scripting():
        return x.index_select(dim, index)
    else:
        return x.gather(dim, _everywhere(index, dim, x)) if tracing() else x.index_select(dim, index)


def put_rows(x: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """(N, ...) -> (num_rows, ...), row index[i] the row i of x, zero where no index (N,) is. No index stands twice."""
    rows = x.new_zeros([num_rows] + list(x.shape[1:]))
    if torch.jit.is_scripting():
        return rows.index_copy(0, index, x)
    else:
        return rows.scatter(0, _everywhere(index, 0, x), x) if tracing() else rows.index_copy(0, index, x)


def sum_rows(x: Tensor, index: Tensor, num_rows: int) -> Tensor:
    """(N, ...) -> (num_rows, ...), row i the sum of the rows of x whose index (N,) is i.

    With the environment variable EFA_ADDONS_SCATTER=1 by torch_scatter.scatter(reduce="sum"), in eager mode. The package's
    segment_csr and segment_coo are not used: they have no second derivative, and training on forces would silently be wrong.

    Raises:
        EFAError: torch_scatter is asked for and not installed.
    """
    if torch.jit.is_scripting():
        return x.new_zeros([num_rows] + list(x.shape[1:])).index_add(0, index, x)
    else:
        traced = tracing()
        if use_torch_scatter and not traced:
            return _by_torch_scatter(x, index, num_rows)
        rows = x.new_zeros([num_rows, *x.shape[1:]])
        return rows.scatter_add(0, _everywhere(index, 0, x), x) if traced else rows.index_add(0, index, x)


def _everywhere(index: Tensor, dim: int, x: Tensor) -> Tensor:
    """index (N,) along dim of x, the same at all places of the other dimensions."""
    shape = [-1 if here == dim else 1 for here in range(x.dim())]
    return index.view(shape).expand([-1 if here == dim else x.shape[here] for here in range(x.dim())])


def _by_torch_scatter(x: Tensor, index: Tensor, num_rows: int) -> Tensor:
    try:
        scatter = importlib.import_module("torch_scatter").scatter
    except ImportError as error:
        raise EFAError(
            f"{VARIABLE}=1 asks for torch_scatter, which cannot be imported ({error}): {how_to_install('scatter')}; or "
            "unset the variable."
        ) from error
    return scatter(x, index, dim=0, dim_size=num_rows, reduce="sum")
