"""Checks of tensors on their way into EFA; each message names what was given and what was expected."""

from __future__ import annotations

import functools
import math
import warnings
from numbers import Integral, Real
from typing import Dict, List, Optional

import torch
from torch import Tensor

from efa_addons.errors import EFAError, EFAWarning
from efa_addons.late import Late
from efa_addons.ops.grid import half_grid
from efa_addons.ops.tracing import tracing


def check_inputs(inputs: Tensor, positions: Tensor, batch: Optional[Tensor], shape: List[int]) -> None:
    """Shapes and dtypes of features (N, *shape), positions (N, 3) and batch (N,)."""
    if torch.jit.is_scripting():
        pass  # TorchScript leaves out what is in `else` alone
    else:
        check_tensors(inputs=inputs, positions=positions)
        if batch is not None:
            check_tensors(batch=batch)
    if list(inputs.shape[1:]) != shape or inputs.dim() != 4:
        raise EFAError(
            f"inputs must have the shape (atoms, {shape[0]}, {shape[1]}, {shape[2]}): parities, (max_degree+1)^2, "
            f"num_features; got {list(inputs.shape)}."
        )
    if positions.dim() != 2 or positions.shape[0] != inputs.shape[0] or positions.shape[1] != 3:
        raise EFAError(f"positions must have the shape ({inputs.shape[0]}, 3) as inputs, got {list(positions.shape)}.")
    if not inputs.is_floating_point() or not positions.is_floating_point():
        raise EFAError(f"inputs and positions must be real floating-point, got {inputs.dtype} and {positions.dtype}.")
    if batch is not None:
        if batch.dim() != 1 or batch.shape[0] != inputs.shape[0]:
            raise EFAError(f"batch must have the shape ({inputs.shape[0]},) as inputs, got {list(batch.shape)}.")
        if batch.dtype != torch.int64:
            raise EFAError(f"batch must hold int64 graph numbers, got {batch.dtype}; use batch.long().")


def check_tensors(**given: object) -> None:
    """Raises for what is none, by its name, and where torch.jit.trace makes more of tensors than they are."""
    if torch.jit.is_tracing():
        raise EFAError(
            "torch.jit.trace records EFA for the sizes of the graphs that it sees, and would be wrong for others: put "
            "torch.jit.script(block) into what is traced, or use torch.export."
        )
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise EFAError(f"{name} must be a tensor, got {type(value).__name__}; use torch.as_tensor({name}).")


def is_number(value: object) -> bool:
    """Whether it is a real number, and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_whole(**given: object) -> None:
    """Raises for what is no whole number (of a trace neither), by its name."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
            raise EFAError(f"{name} must be a whole number, got {value!r}.")


def check_dtype(inputs: Tensor, weight: Tensor) -> None:
    """Features must be of the dtype of the weights, autocast apart."""
    if inputs.dtype != weight.dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise EFAError(
            f"features must be of the dtype of EFA's weights, {weight.dtype}, got {inputs.dtype}: convert them, or the module "
            "by .to(dtype). Positions may be of another one."
        )


def check_graphs(batch: Tensor, num_graphs: int) -> None:
    """Graph numbers within 0 to num_graphs - 1; looked at only where that needs no waiting for a device."""
    if torch.jit.is_scripting():
        look = not batch.is_cuda
    else:
        check_whole(num_graphs=num_graphs)
        look = batch.device.type == "cpu" and not tracing()
    if look:
        if num_graphs < 1:
            raise EFAError(f"num_graphs must be 1 or more, got {num_graphs}.")
        if batch.shape[0] > 0:
            low, high = int(batch.min().item()), int(batch.max().item())
            if low < 0 or high >= num_graphs:
                raise EFAError(f"batch must hold graph numbers 0 to {num_graphs - 1}, got {low} to {high}.")


def refuse_periodic(pbc: Optional[Tensor], reason: str = "pbc has a true entry") -> None:
    """Raises for structures that are periodic in any direction, by their pbc flag and never by their cell.

    On a GPU, which is not waited for, in a later call: what the structure itself gets is left to `nan_if_periodic`.
    """
    if pbc is not None:
        if torch.jit.is_scripting():
            periodic = bool(pbc.any().item())
        else:
            periodic = _has_true(pbc)
            if pbc.device.type != "cpu":
                reason += ", in this call or an earlier one"
        if periodic:
            raise EFAError(
                f"EFA got a periodic structure ({reason}). Absolute positions are not defined under periodic "
                "boundary conditions and periodic EFA does not exist yet: set pbc to false, or use the model without EFA."
            )


_of_device: Dict[torch.device, Late] = {}


def _has_true(flags: Tensor) -> bool:
    """Of this call or, on a GPU, of an earlier one; false in traces."""
    if tracing() or not _of_device.setdefault(flags.device, Late())(flags.device, flags.any):
        return False
    _of_device.pop(flags.device, None)  # told: what is on its way belongs to this error, too
    return True


def nan_if_periodic(x: Tensor, pbc: Optional[Tensor]) -> Tensor:
    """x, or NaN where a flag is set and `refuse_periodic` could not look at it: on a GPU, and in traces."""
    if torch.jit.is_scripting():
        return x
    else:
        if pbc is None or (pbc.device.type == "cpu" and not tracing()):
            return x
        return x * torch.where(pbc.any(), math.nan, 1.0)


def width(positions: Tensor, batch: Tensor, num_graphs: int) -> Tensor:
    """Largest distance between two atoms of the same graph, Å, to 0.5% and never more: without looking at anything."""
    largest = positions.new_zeros([])
    for part in _compass(positions.device, positions.dtype).split(16):
        u, v, w = part.unbind(1)
        along = positions[:, :1] * u + positions[:, 1:2] * v + positions[:, 2:] * w  # no matrix product, see `ops.parts`
        graph = batch.unsqueeze(1).expand_as(along)
        nothing = along.new_full([num_graphs, len(part)], -math.inf)
        if num_graphs == 1:
            widths = along.amax(0) - along.amin(0)
        else:
            widths = nothing.scatter_reduce(0, graph, along, "amax") + nothing.scatter_reduce(0, graph, -along, "amax")
        largest = torch.maximum(largest, widths.max())
    return largest


def warn_if_wider(size: float, max_length: float, stacklevel: int = 3) -> bool:
    """Warns of a structure that is wider than EFA was set up for, both in Å. True where it did."""
    if size <= max_length * (1 + 1e-6):
        return False
    warnings.warn(
        f"a structure is {size:.2f} Å wide, EFA was set up for max_length={max_length:.2f} Å: it is computed, but rotational "
        "invariance is no longer promised. Set a larger max_length and train again.",
        EFAWarning,
        stacklevel=stacklevel,
    )
    return True


@functools.lru_cache
def _compass(device: torch.device, dtype: torch.dtype) -> Tensor:
    """295 directions, (295, 3)."""
    return torch.as_tensor(half_grid(590)[0], dtype=dtype, device=device)


def largest_distance(positions: Tensor, batch: Tensor, exact_up_to: int = 4096) -> float:
    """Largest distance between two atoms of the same graph, Å; of graphs of more than `exact_up_to` atoms to 0.5%, never more.

    Those are measured along 295 directions, which takes time and memory in proportion to the atoms.
    """
    largest = 0.0
    for graph in batch.unique().tolist():
        points = positions[batch == graph]
        if points.shape[0] > exact_up_to:
            largest = max(largest, width(points, torch.zeros_like(points[:, 0], dtype=torch.long), 1).item())
        else:
            for part in points.split(256):
                distances = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
                largest = max(largest, distances.max().item())
    return largest
