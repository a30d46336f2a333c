"""Whether Triton's kernels are right on a device: run there on a small problem, and held against torch in float64.

The problem is always the same and made without random numbers. It fills a tile of atoms, phases and values and begins another,
so that the kernels are compiled with the tiles that large problems have. What atoms read out is also looked at with a number
of values that takes wide tiles.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from efa_addons.ops import parts
from efa_addons.ops.grid import half_grid

# Largest error of a sum, in the norm over its elements and relative to it, by what products are rounded to.
LIMITS = {"tf32x3": 1e-5, "ieee": 1e-5, "tf32": 5e-3, "bf16": 4e-2}
_BLOCKS, _ATOMS, _VALUES, _WIDE, _CHANNELS = 2, 130, 131, 67, 3
_POINTS = 170


def largest_error(kernels: ModuleType, device: torch.device, second: bool, mixed: bool) -> float:
    """Of all five sums; infinite where one is no number. Waits for the device.

    Args:
        kernels: `ops.triton_waves`.
        second: of the second derivatives, otherwise of the values and the first.
        mixed: with harmonics under the integral, of odd degree.
    """
    errors = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for num_values, needed in ((_VALUES, [True] * 5), (_WIDE, [False, True, False, False, False])):
            single, double = (_problem(device, dtype, mixed, num_values) for dtype in (torch.float32, torch.float64))
            if second:
                found = kernels.second_partials(*single[0], single[1], single[2], needed)
                expected = parts.second_partials(*double[0], double[1], double[2], needed)
            else:
                found = kernels.partials(*single[0], single[1], needed)
                expected = parts.partials(*double[0], double[1], needed)
            errors += [_relative(a, b) for a, b, wanted in zip(found, expected, needed, strict=True) if wanted]
        return float(torch.stack(errors).nan_to_num(nan=torch.inf).max())


def _relative(found: Tensor | None, expected: Tensor | None) -> Tensor:
    assert found is not None and expected is not None
    return (found - expected).norm() / expected.norm()


def _problem(
    device: torch.device, dtype: torch.dtype, mixed: bool, num_values: int
) -> tuple[list[Tensor], parts.Waves, list[Tensor]]:
    """x, y, r, ω and T, what is summed over, and a direction in (x, y, r, ω, T). Phases up to 25."""
    points = torch.as_tensor(half_grid(_POINTS)[0], dtype=torch.float64, device=device)
    directions = torch.cat([points[:1], points]).float()  # a group of one direction, and one of half a grid
    components = 3 if mixed else 1
    described = parts.Waves(
        directions.to(dtype), _numbers([len(directions), components], 0, device).to(dtype) if mixed else None,
        [1, len(points)], [1, _CHANNELS], torch.zeros(_BLOCKS, dtype=torch.long, device=device), 1, False, mixed,
    )  # fmt: skip
    channels = 1 + _CHANNELS
    shapes = [
        [_BLOCKS, 2, channels, _ATOMS], [_BLOCKS, components, _ATOMS, num_values], [_BLOCKS, 3, _ATOMS], [channels],
        [1, parts.num_rows(described, 2), num_values],
    ]  # fmt: skip
    arguments, along = ([_numbers(shape, 10 * i + k, device) for i, shape in enumerate(shapes)] for k in (1, 2))
    arguments[2] *= 5.0
    arguments[3] = arguments[3].abs() * 3.0
    return [part.to(dtype) for part in arguments], described, [part.to(dtype) for part in along]


def _numbers(shape: list[int], start: int, device: torch.device) -> Tensor:
    """As good as random, between -1 and 1, in float32: sums of them do not cancel. Fractions of n² times the golden ratio."""
    number = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device=device) + 1000 * start
    return (number.square() * 0.6180339887498949).frac().mul(2).sub(1).view(shape).float()
