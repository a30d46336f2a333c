"""`partials` and `second_partials` of `ops.waves` by the kernels of `ops.triton_kernels`, in float32.

Nothing here looks at what is on the device: sizes of launches follow from shapes alone, tables from the grid.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from efa_addons.ops import triton_kernels as kernels
from efa_addons.ops.backends import precision
from efa_addons.ops.parts import Partials, Waves, num_rows

# Tiles: of atoms, of phases, of values. What a group of four warps multiplies at once has 64 rows; the other size is what the
# registers hold: twice as many atoms in `state`, or phases in `pull`, spill.
_STATE_ATOMS, _STATE_PHASES = 16, 64
_READ_ATOMS, _READ_PHASES = 128, 32  # each row of T that is loaded serves so many atoms: at 64 the L2 cache is the limit
_PULL_PHASES = 16
_VALUES = 64
_PROGRAMS = 4  # wanted for each multiprocessor, so that all are busy to the end


def partials(
    x: Tensor, y: Tensor | None, r: Tensor, frequencies: Tensor, state: Tensor | None, waves: Waves, needed: Sequence[bool]
) -> Partials:
    """As `ops.waves.partials`."""
    of_x, of_y, of_r, of_frequencies, of_state = needed
    with torch.cuda.device_of(x):
        sums = _Sums(x, y, r, frequencies, state, waves)
        by_state = sums.state(y, None) if of_state else None
        by_y = sums.read_out(state, None) if of_y else None
        by_x, by_r, by_frequencies = sums.pull(of_x, of_r, of_frequencies)
    return by_x, by_y, by_r, by_frequencies, by_state


def second_partials(
    x: Tensor,
    y: Tensor | None,
    r: Tensor,
    frequencies: Tensor,
    state: Tensor | None,
    waves: Waves,
    along: Partials,
    needed: Sequence[bool],
) -> Partials:
    """As `ops.waves.second_partials`."""
    of_x, of_y, of_r, of_frequencies, of_state = needed
    dx, dy, dr, df, dstate = along
    changes = dx is not None or dr is not None or df is not None
    with torch.cuda.device_of(x):
        sums = _Sums(x, y, r, frequencies, state, waves, along)
        by_state = sums.state(y if changes else None, dy) if state is not None and of_state else None
        by_y = sums.read_out(state if changes else None, dstate) if y is not None and of_y else None
        by_x, by_r, by_frequencies = sums.pull(of_x, of_r, of_frequencies)
    return by_x, by_y, by_r, by_frequencies, by_state


class _Sums:
    """The three sums for one set of arguments; along a direction where one is given."""

    def __init__(
        self,
        x: Tensor,
        y: Tensor | None,
        r: Tensor,
        frequencies: Tensor,
        state: Tensor | None,
        waves: Waves,
        along: Partials | None = None,
    ) -> None:
        self.x, self.r, self.frequencies = x.contiguous(), r.contiguous(), frequencies.contiguous()
        self.y, self.t = _contiguous(y), _contiguous(state)
        self.second = along is not None
        self.dx, self.dy, self.dr, self.df, self.dt = (_contiguous(d) for d in (along or [None] * 5))
        self.waves = waves
        self.directions, self.weights = waves.directions.contiguous(), _contiguous(waves.weights)
        self.num_blocks, self.num_d, self.num_channels, self.num_atoms = x.shape
        some = y if y is not None else state
        assert some is not None
        self.num_values = some.shape[-1]
        self.num_components = 1 if waves.weights is None else waves.weights.shape[1]
        self.num_rows = num_rows(waves, self.num_d)
        groups = tuple(waves.group_directions), tuple(waves.group_channels)
        self.table, self.runs = _tables(*groups, self.num_d, x.device)
        self.num_phases = self.table.shape[1]
        self.flags = {
            "NUM_D": self.num_d,
            "NUM_COMPONENTS": self.num_components,
            "NUM_VALUES": self.num_values,
            "TURNED": waves.turned,
            "PRECISION": precision(),
        }

    def empty(self) -> bool:
        return self.x.numel() == 0 or self.num_values == 0

    def state(self, y: Tensor | None, dy: Tensor | None) -> Tensor:
        """(G, R, V); y and dy (B, A, n, V), with the changed features and the features."""
        shape = [self.waves.num_graphs, self.num_rows, self.num_values]
        if self.empty() or (y is None and dy is None):
            return self.x.new_zeros(shape)
        atoms, num_phases = _size(self.num_atoms, _STATE_ATOMS), _size(self.num_phases, _STATE_PHASES)
        values = _size(self.num_values, _VALUES)
        programs = self.waves.num_graphs * triton.cdiv(self.num_phases, num_phases) * ((self.num_d + 1) // 2)
        tiles = triton.cdiv(self.num_values, values)
        splits = _splits(programs * tiles, triton.cdiv(self.num_atoms, atoms), self.x.device)
        out = self.x.new_empty([splits, *shape])
        kernels.state[programs, tiles, splits](
            self.x, _contiguous(y), self.r, self.dx, _contiguous(dy), self.dr, self.df, self.weights, self.directions,
            self.frequencies, self.table, self.blocks_of_graphs(), out, self.num_atoms, self.num_phases, self.num_rows,
            self.num_channels, self.waves.num_graphs, **self.flags, ATOMS=atoms, PHASES=num_phases, VALUES=values,
        )  # fmt: skip
        return _summed(out)

    def read_out(self, t: Tensor | None, dt: Tensor | None) -> Tensor:
        """(B, A, n, V); t and dt (G, R, V), with the changed features and the features."""
        shape = [self.num_blocks, self.num_components, self.num_atoms, self.num_values]
        if self.empty() or (t is None and dt is None):
            return self.x.new_zeros(shape)
        atoms, num_phases = _size(self.num_atoms, _READ_ATOMS), _size(self.num_phases, _READ_PHASES)
        columns = self.num_components * self.num_values
        values = _size(columns, _VALUES)
        programs, tiles = self.num_blocks * triton.cdiv(self.num_atoms, atoms), triton.cdiv(columns, values)
        splits = _splits(programs * tiles, triton.cdiv(self.num_phases, num_phases), self.x.device)
        out = self.x.new_empty([splits, *shape])
        kernels.read_out[programs, tiles, splits](
            self.x, _contiguous(t), self.r, self.dx, _contiguous(dt), self.dr, self.df, self.weights, self.directions,
            self.frequencies, self.table, self.waves.graph, out, self.num_atoms, self.num_phases, self.num_rows,
            self.num_channels, self.num_blocks, **self.flags, ATOMS=atoms, PHASES=num_phases, VALUES=values,
            num_warps=_warps(atoms),
        )  # fmt: skip
        return _summed(out)

    def pull(self, of_x: bool, of_r: bool, of_frequencies: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Those asked for of (B, d, C, n), (B, 3, n) and (C,)."""
        if not (of_x or of_r or of_frequencies):
            return None, None, None
        atoms, num_phases = _size(self.num_atoms, _READ_ATOMS), _PULL_PHASES
        values = _size(self.num_values, _VALUES)
        programs = self.num_blocks * triton.cdiv(self.num_atoms, atoms)
        splits = _splits(programs, self.num_channels, self.x.device)
        fill = self.x.new_zeros if self.empty() else self.x.new_empty
        by_x = fill(self.x.shape) if of_x else None
        by_r = fill([splits, *self.r.shape]) if of_r else None
        by_frequencies = fill([programs, self.num_channels]) if of_frequencies else None
        if not self.empty():
            kernels.pull[programs, splits](
                self.x, self.y, self.t, self.r, self.dx, self.dy, self.dt, self.dr, self.df, self.weights, self.directions,
                self.frequencies, self.table, self.runs, self.waves.graph, by_x, by_r, by_frequencies, self.num_atoms,
                self.num_phases, self.num_rows, self.num_channels, self.num_blocks, SECOND=self.second, **self.flags,
                ATOMS=atoms, PHASES=num_phases, VALUES=values, num_warps=_warps(atoms),
            )  # fmt: skip
        return by_x, None if by_r is None else _summed(by_r), None if by_frequencies is None else by_frequencies.sum(0)

    def blocks_of_graphs(self) -> Tensor:
        """(G + 1,) first block of each graph, and B. The graphs of blocks ascend."""
        numbers = torch.arange(self.waves.num_graphs + 1, device=self.x.device)
        return numbers if self.waves.one_each else torch.searchsorted(self.waves.graph, numbers)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _summed(shares: Tensor) -> Tensor:
    return shares[0] if shares.shape[0] == 1 else shares.sum(0)


def _size(number: int, most: int) -> int:
    """Of a tile: a power of two, no smaller than the matrix units take."""
    return max(16, min(most, triton.next_power_of_2(number)))


def _warps(rows: int) -> int:
    """Four for every 64 rows of a product."""
    return 8 if rows == 128 else 4


def _splits(programs: int, pieces: int, device: torch.device) -> int:
    """How many programs share each sum, so that the device is full."""
    wanted = triton.cdiv(_PROGRAMS * _processors(device), max(1, programs))
    return max(1, min(pieces, wanted))


@functools.lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.lru_cache(maxsize=256)
def _tables(directions: tuple[int, ...], channels: tuple[int, ...], num_d: int, device: torch.device) -> Any:
    """What the kernels know of the phases, (4, Φ), and of the channels, (2, C), int32: made once for a grid.

    Of a phase: direction, channel, row of its cos of the first d, rows between one d and the next. Of a channel: its first
    phase, and how many.
    """
    table: list[tuple[int, int, int, int]] = []
    runs: list[tuple[int, int]] = []
    direction = channel = row = 0
    for in_group, width in zip(directions, channels, strict=True):
        for own in range(width):
            runs.append((len(table), in_group))
            for m in range(in_group):
                table.append((direction + m, channel + own, row + 2 * num_d * width * m + own, width))
        direction, channel, row = direction + in_group, channel + width, row + 2 * num_d * width * in_group
    as_tensor = functools.partial(torch.tensor, dtype=torch.int32)
    return as_tensor(table).t().contiguous().to(device), as_tensor(runs).t().contiguous().to(device)
