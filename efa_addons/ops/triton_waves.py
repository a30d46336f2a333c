"""`partials` and `second_partials` of `ops.waves` by the kernels of `ops.triton_kernels`, in float32.

Nothing here looks at what is on the device: sizes of launches follow from shapes alone, tables from the grid.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.errors import OutOfResources

from efa_addons.ops import triton_kernels as kernels
from efa_addons.ops.backends import interpreted, precision
from efa_addons.ops.parts import Partials, Waves, num_rows

_VALUES = 64


class Tiles(NamedTuple):
    """What a program works on at a time, at most, and how. Measured on an H100 (`python -m benchmarks.gpu --only kernels`)."""

    atoms: int
    rows: int  # of the products: those of `state` are phases, those of the others atoms
    warps: int
    stages: int  # of loads ahead; fewer where a card has no room for them
    registers: int | None = None  # of a thread at most, for more programs side by side; only where that spills little
    phases: int | None = None  # of `read_out`, fewer than the grid's tile has


_TILES = {
    "state": {"": Tiles(32, 64, 4, 3), "tf32x3": Tiles(16, 64, 4, 4)},
    "read_out": {"": Tiles(128, 128, 8, 3)},
    "pull": {"": Tiles(64, 64, 4, 3, 168), "tf32x3": Tiles(128, 128, 8, 2), "bf16": Tiles(64, 64, 4, 2, 128)},
}
# of `read_out` where there are 128 values at a time
_WIDE, _READ_VALUES = {"": Tiles(128, 128, 8, 4, phases=16), "bf16": Tiles(64, 64, 4, 3, 168)}, 128
_PHASES = (32, 16)  # of one channel: large tiles where channels have many
_FILLED = 0.75  # of the tiles at least, for the large ones
_PROGRAMS = 2  # at a time on a multiprocessor
_ROUNDS = 2  # of these at least, so that all are busy to the end
# The matrix units cut off what they add up, so that errors grow with the terms of a sum: 5e-9 for each atom or phase, relative,
# on an H100. Longer sums are shared, as long as the shares take no more memory than this, bytes.
_LONGEST, _SHARES = {"": 16_384, "tf32x3": 2048}, 2**31
_FUSED = {"enable_fp_fusion": True}  # of products and sums, which Triton will no longer do unasked
_PART = {"tf32x3": 2}  # arrays for one: the rounded values, and what rounding took away


def partials(
    x: Tensor, y: Tensor | None, r: Tensor, frequencies: Tensor, state: Tensor | None, waves: Waves, needed: Sequence[bool]
) -> Partials:
    """As `ops.waves.partials`."""
    of_x, of_y, of_r, of_frequencies, of_state = needed
    with torch.cuda.device_of(x):
        sums = _Sums(x, y, r, frequencies, state, waves)
        by_state = sums.state(True, False) if of_state else None
        by_y = sums.read_out(True, False) if of_y else None
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
    dx, _, dr, df, _ = along
    changes = dx is not None or dr is not None or df is not None
    with torch.cuda.device_of(x):
        sums = _Sums(x, y, r, frequencies, state, waves, along)
        by_state = sums.state(changes, True) if state is not None and of_state else None
        by_y = sums.read_out(changes, True) if y is not None and of_y else None
        by_x, by_r, by_frequencies = sums.pull(of_x, of_r, of_frequencies)
    return by_x, by_y, by_r, by_frequencies, by_state


_stages: dict[tuple[Any, ...], int] = {}  # of loads ahead, for which a device had room


class Grid(NamedTuple):
    """What the kernels know of the phases: channel by channel, each channel filled up to whole tiles; Φ' in all."""

    tile: int  # phases of a tile
    num_phases: int  # Φ'
    direction: Tensor  # (Φ',) of each
    channel: Tensor  # (Φ',)
    tile_channel: Tensor  # (tiles,), int32
    runs: Tensor  # (2, C) first tile of each channel, and how many it has, int32
    rows: Tensor  # (2, Φ') row in the state of each phase's cos of the first d, -1 for none; from one d to the next; int32
    items: Tensor  # (2 D' Φ',) row in the state of each cos, then of each sin, by d and phase, -1 for none, int32


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
        self.x, self.r = x.contiguous(), r.contiguous()
        self.second = along is not None
        dx, dy, dr, df, dstate = along or [None] * 5
        self.dx, self.dr = _contiguous(dx), _contiguous(dr)
        self.of_y, self.of_t = {"": y, "d": dy}, {"": state, "d": dstate}
        self.waves = waves
        self.num_blocks, self.num_d, self.num_channels, self.num_atoms = x.shape
        some = y if y is not None else state
        assert some is not None
        self.num_values = some.shape[-1]
        self.num_components = 1 if waves.weights is None else waves.weights.shape[1]
        self.num_rows = num_rows(waves, self.num_d)
        self.grid = _grid(tuple(waves.group_directions), tuple(waves.group_channels), self.num_d, x.device)
        self.u = waves.directions.t().index_select(1, self.grid.direction)  # (3, Φ')
        self.k = self.u * frequencies.index_select(0, self.grid.channel)
        self.dk = None if df is None else self.u * df.index_select(0, self.grid.channel)
        self.weights = None if waves.weights is None else waves.weights.t().index_select(1, self.grid.direction)
        self.tile_of_values = min(_VALUES, _size(self.num_values))
        self.padded_values = _cdiv(self.num_values, self.tile_of_values) * self.tile_of_values
        self.wide = self.padded_values % _READ_VALUES == 0
        self.arranged: dict[tuple[str, bool], Tensor] = {}
        self.flags: dict[str, Any] = {
            "NUM_D": self.num_d,
            "NUM_COMPONENTS": self.num_components,
            "PADDED_VALUES": self.padded_values,
            "TURNED": waves.turned,
            "PRECISION": precision(),
            "NATIVE": _rounds(x.device),
        }

    def empty(self) -> bool:
        return self.x.numel() == 0 or self.num_values == 0

    def state(self, with_y: bool, with_dy: bool) -> Tensor:
        """(G, R, V): of the changed features with y, and of the features with dy."""
        shape = [self.waves.num_graphs, self.num_rows, self.num_values]
        y, dy = self.values("", with_y, True), self.values("d", with_dy, True)
        if self.empty() or (y is None and dy is None):
            return self.x.new_zeros(shape)
        num_phases = 2 * self.grid.tile
        atoms = self.tile_of_atoms("state")
        programs = self.waves.num_graphs * (self.grid.num_phases // num_phases) * ((self.num_d + 1) // 2)
        tiles = self.padded_values // self.tile_of_values
        pieces = _cdiv(self.num_atoms, atoms)
        splits = _splits(
            programs * tiles, pieces, self.x.device, _shares(self.num_atoms, math.prod(shape), self.flags["PRECISION"])
        )
        out = self.x.new_empty([splits, *shape])
        self.launch(
            "state", (programs, tiles, splits), num_phases,
            (self.x, y, self.r, self.k, self.dx, dy, self.dr, self.dk, self.weights, self.grid.tile_channel,
             self.grid.rows, self.blocks_of_graphs(), out, self.num_atoms, self.num_items, self.grid.num_phases, self.num_rows,
             self.num_channels, self.waves.num_graphs, self.size(y, dy)),
            NUM_VALUES=self.num_values, HALVES=2, VALUES=self.tile_of_values,
        )  # fmt: skip
        return _summed(out)

    def read_out(self, with_t: bool, with_dt: bool) -> Tensor:
        """(B, A, n, V): of the changed features with T, and of the features with dT."""
        shape = [self.num_blocks, self.num_components, self.num_atoms, self.num_values]
        t, dt = self.rows("", with_t, True), self.rows("d", with_dt, True)
        if self.empty() or (t is None and dt is None):
            return self.x.new_zeros(shape)
        atoms = self.tile_of_atoms("read_out")
        values = _READ_VALUES if self.wide else self.tile_of_values
        phases = min(self.tiles_of("read_out").phases or self.grid.tile, self.grid.tile)
        programs = self.num_blocks * _cdiv(self.num_atoms, atoms)
        tiles = self.num_components * (self.padded_values // values)
        rounded = self.flags["PRECISION"]
        # for tf32x3 the matrix units add up no more than a tile of phases
        least = 1 if rounded == "tf32x3" else _shares(self.grid.num_phases, math.prod(shape), rounded)
        splits = _splits(programs * tiles, self.grid.num_phases // phases, self.x.device, least)
        out = self.x.new_empty([splits, *shape])
        self.launch(
            "read_out", (programs, tiles, splits), phases,
            (self.x, t, self.r, self.k, self.dx, dt, self.dr, self.dk, self.weights, self.grid.tile_channel, self.waves.graph,
             out, self.num_atoms, self.grid.num_phases, self.num_channels, self.num_blocks, self.size(t, dt)),
            NUM_VALUES=self.num_values, VALUES=values, TILE=self.grid.tile,
        )  # fmt: skip
        return _summed(out)

    def pull(self, of_x: bool, of_r: bool, of_frequencies: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Those asked for of (B, d, C, n), (B, 3, n) and (C,)."""
        if not (of_x or of_r or of_frequencies):
            return None, None, None
        y, dy, t, dt = (make(name, True, False) for make in (self.values, self.rows) for name in ("", "d"))
        programs = self.num_blocks * _cdiv(self.num_atoms, self.tile_of_atoms("pull"))
        splits = _splits(programs, self.num_channels, self.x.device)
        fill = self.x.new_zeros if self.empty() else self.x.new_empty
        by_x = fill(self.x.shape) if of_x else None
        by_r = fill([splits, *self.r.shape]) if of_r else None
        by_frequencies = fill([programs, self.num_channels]) if of_frequencies else None
        if not self.empty():
            self.launch(
                "pull", (programs, splits), self.grid.tile,
                (self.x, y, t, self.r, self.k, self.dx, dy, dt, self.dr, self.dk, self.u if of_frequencies else None,
                 self.weights, self.grid.runs, self.waves.graph, by_x, by_r, by_frequencies, self.num_atoms, self.num_items,
                 self.grid.num_phases, self.num_channels, self.num_blocks, self.size(y, dy), self.size(t, dt)),
                SECOND=self.second, VALUES=self.tile_of_values,
            )  # fmt: skip
        return by_x, None if by_r is None else _summed(by_r), None if by_frequencies is None else by_frequencies.sum(0)

    def launch(self, name: str, grid: tuple[int, ...], phases: int, arguments: Sequence[Any], **constants: Any) -> None:
        """Runs a kernel, with fewer loads ahead where the device has no room for as many as its tiles are meant to have."""
        tiles, atoms = self.tiles_of(name), self.tile_of_atoms(name)
        full = (phases if name == "state" else atoms) == tiles.rows
        options = {"num_warps": tiles.warps if full else min(4, tiles.warps), **_FUSED}
        if tiles.registers and full and not self.second and self.weights is None and not interpreted():
            options["maxnreg"] = tiles.registers
        constants = {**self.flags, **constants, "ATOMS": atoms, "PHASES": phases}
        kind = (name, self.x.device, *constants.values(), *(argument is None for argument in arguments))
        for stages in range(_stages.get(kind, tiles.stages), 0, -1):
            try:
                getattr(kernels, name)[grid](*arguments, **constants, **options, num_stages=stages)
                _stages[kind] = stages
                return
            except OutOfResources:
                if stages == 1:
                    raise

    def tiles_of(self, name: str) -> Tiles:
        known = _WIDE if name == "read_out" and self.wide else _TILES[name]
        return known.get(self.flags["PRECISION"], known[""])

    def tile_of_atoms(self, name: str) -> int:
        return min(self.tiles_of(name).atoms, _size(self.num_atoms))

    @property
    def num_items(self) -> int:
        """n', a multiple of all tiles of atoms."""
        tile = max(self.tile_of_atoms(name) for name in ("state", "pull"))
        return _cdiv(self.num_atoms, tile) * tile

    def values(self, name: str, wanted: bool, transposed: bool) -> Tensor | None:
        """y or dy (name "d") arranged: (parts, B A, n', V'), or transposed (parts, B A, V', n')."""
        return self.arrange("y" + name, self.of_y[name] if wanted else None, None, self.num_items, transposed)

    def rows(self, name: str, wanted: bool, transposed: bool) -> Tensor | None:
        """T or dT (name "d") arranged: (parts, G, 2 D' Φ', V'), or transposed (parts, G, V', 2 D' Φ')."""
        return self.arrange("t" + name, self.of_t[name] if wanted else None, self.grid.items, len(self.grid.items), transposed)

    def arrange(self, name: str, source: Tensor | None, rows: Tensor | None, num_out: int, transposed: bool) -> Tensor | None:
        if source is None or self.empty():
            return None
        key = (name, transposed)
        if key not in self.arranged:
            source = source.contiguous().flatten(0, -3)  # (L, I, V)
            rounded = self.flags["PRECISION"]
            inner = [self.padded_values, num_out] if transposed else [num_out, self.padded_values]
            dtype = torch.bfloat16 if rounded == "bf16" and not interpreted() else source.dtype
            out = source.new_empty([_PART.get(rounded, 1), len(source), *inner], dtype=dtype)
            items, tile = 32 if num_out % 32 == 0 else 16, min(32, self.tile_of_values)
            kernels.arrange[len(source) * (num_out // items), self.padded_values // tile](
                source, rows, out, source.shape[1], num_out, out[0].numel(), NUM_VALUES=self.num_values,
                PADDED_VALUES=self.padded_values, TRANSPOSED=transposed, PRECISION=rounded,
                NATIVE=self.flags["NATIVE"], ITEMS=items, VALUES=tile, **_FUSED,
            )  # fmt: skip
            self.arranged[key] = out
        return self.arranged[key]

    def size(self, *arranged: Tensor | None) -> int:
        """Numbers in a part."""
        return next((part[0].numel() for part in arranged if part is not None), 0)

    def blocks_of_graphs(self) -> Tensor:
        """(G + 1,) first block of each graph, and B. The graphs of blocks ascend."""
        numbers = torch.arange(self.waves.num_graphs + 1, device=self.x.device)
        return numbers if self.waves.one_each else torch.searchsorted(self.waves.graph, numbers)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _summed(shares: Tensor) -> Tensor:
    return shares[0] if shares.shape[0] == 1 else shares.sum(0)


def _shares(terms: int, size: int, rounded: str) -> int:
    """Into how many a sum of so many atoms or phases is to be cut, with results of so many float32 each."""
    return max(1, min(_cdiv(terms, _LONGEST.get(rounded, _LONGEST[""])), _SHARES // max(1, 4 * size)))


def _size(number: int) -> int:
    """Of a tile that has room for so many: a power of two, no smaller than the matrix units take."""
    return max(16, 1 << (number - 1).bit_length())


def _cdiv(number: int, by: int) -> int:
    """Rounded up. Triton's own takes 10 µs outside of a kernel."""
    return -(-number // by)


@functools.lru_cache
def _splits(programs: int, pieces: int, device: torch.device, least: int = 1) -> int:
    """How many programs share each sum, so that the device is full: to the end, for what is left over fills a round as well."""
    programs, slots = max(1, programs), _PROGRAMS * _processors(device)
    first = max(least, _cdiv(_ROUNDS * slots, programs))
    candidates = range(min(pieces, first), max(1, min(pieces, 2 * first)) + 1)
    return max(1, max(candidates, key=lambda n: (round(20 * n * programs / slots / _cdiv(n * programs, slots)), -n)))


@functools.lru_cache
def _rounds(device: torch.device) -> bool:
    """Whether there is an instruction for rounding to TF32."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@functools.lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@functools.cache  # CUDA graphs read these tables again: they must not go
def _grid(directions: tuple[int, ...], channels: tuple[int, ...], num_d: int, device: torch.device) -> Grid:
    """Made once for a grid."""
    counts = [in_group for in_group, width in zip(directions, channels, strict=True) for _ in range(width)]
    filled = {tile: sum(_cdiv(count, tile) * tile for count in counts) for tile in _PHASES}
    tile = next((tile for tile in _PHASES if sum(counts) >= _FILLED * filled[tile]), _PHASES[-1])
    phases: list[tuple[int, int, int, int]] = []  # direction, channel, row, and rows between one d and the next
    runs: list[tuple[int, int]] = []
    direction = channel = row = 0
    for in_group, width in zip(directions, channels, strict=True):
        for own in range(width):
            runs.append((len(phases) // tile, _cdiv(in_group, tile)))
            for m in range(in_group):
                phases.append((direction + m, channel + own, row + 2 * num_d * width * m + own, width))
            phases += [(0, channel + own, -1, 0)] * (-in_group % tile)
        direction, channel, row = direction + in_group, channel + width, row + 2 * num_d * width * in_group
    phases += [(0, 0, -1, 0)] * (-len(phases) % (2 * tile))  # `state` takes two tiles at a time
    table = torch.tensor(phases).t()
    even_d = (num_d + 1) // 2 * 2
    number = torch.arange(even_d).view(1, -1, 1) + torch.tensor([0, num_d]).view(2, 1, 1)
    items = (table[2] + number * table[3]).masked_fill((table[2] < 0) | (torch.arange(even_d).view(1, -1, 1) >= num_d), -1)
    return Grid(
        tile,
        len(phases),
        table[0].to(device),
        table[1].to(device),
        table[1, ::tile].int().to(device),
        torch.tensor(runs).t().int().contiguous().to(device),
        table[2:].int().contiguous().to(device),
        items.flatten().int().to(device),
    )
