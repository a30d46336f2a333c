"""Checks of tensors on their way into EFA; each message names what was given and what was expected."""

from __future__ import annotations

from typing import List, Optional

import torch
from torch import Tensor

from efa_addons.errors import EFAError
from efa_addons.ops.grid import half_grid
from efa_addons.ops.tracing import tracing


def check_inputs(inputs: Tensor, positions: Tensor, batch: Optional[Tensor], shape: List[int]) -> None:
    """Shapes and dtypes of features (N, *shape), positions (N, 3) and batch (N,)."""
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


def check_graphs(batch: Tensor, num_graphs: int) -> None:
    """Graph numbers within 0 to num_graphs - 1; looked at only where that needs no waiting for a device."""
    if torch.jit.is_scripting():
        look = not batch.is_cuda
    else:
        look = batch.device.type == "cpu" and not tracing()
    if look:
        if num_graphs < 1:
            raise EFAError(f"num_graphs must be 1 or more, got {num_graphs}.")
        if batch.shape[0] > 0:
            low, high = int(batch.min().item()), int(batch.max().item())
            if low < 0 or high >= num_graphs:
                raise EFAError(f"batch must hold graph numbers 0 to {num_graphs - 1}, got {low} to {high}.")


def refuse_periodic(pbc: Optional[Tensor]) -> None:
    """Raises for structures that are periodic in any direction, by their pbc flag and never by their cell."""
    if pbc is not None:
        if torch.jit.is_scripting():
            look = True
        else:
            look = not tracing()
        if look and bool(pbc.any().item()):
            raise EFAError(
                "EFA got a periodic structure (pbc has a true entry). Absolute positions are not defined under periodic "
                "boundary conditions and periodic EFA does not exist yet: set pbc to false, or use the model without EFA."
            )


def largest_distance(positions: Tensor, batch: Tensor, exact_up_to: int = 4096) -> float:
    """Largest distance between two atoms of the same graph, Å; of graphs of more than `exact_up_to` atoms to 0.5%, never more.

    Those are measured along 295 directions, which takes time and memory in proportion to the atoms.
    """
    largest = 0.0
    for graph in batch.unique().tolist():
        points = positions[batch == graph]
        if points.shape[0] > exact_up_to:
            directions = torch.as_tensor(half_grid(590)[0], dtype=points.dtype, device=points.device)
            for part in directions.split(16):
                along = points @ part.T
                largest = max(largest, (along.amax(0) - along.amin(0)).max().item())
        else:
            for part in points.split(256):
                distances = torch.cdist(part, points, compute_mode="donot_use_mm_for_euclid_dist")
                largest = max(largest, distances.max().item())
    return largest
