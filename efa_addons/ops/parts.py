"""The sums of `ops.waves` by torch, part by part: memory of one part beside arguments and results.

The phases of an atom are computed again wherever they are needed. Turning every phase by 90 degrees differentiates by it, so
that derivatives take only matrix products with the same features.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from efa_addons.dtype import without_autocast
from efa_addons.errors import EFAError

VARIABLE = "EFA_ADDONS_CHUNK_MB"
# Memory of a part, bytes: on a CPU what each thread works on must fit its cache, elsewhere it must keep the device busy.
_CHUNK_OF_THREAD, _CHUNK_ELSEWHERE = 2**23, 2**29
_ARRAYS = 8  # as large as the features, which a part needs at most (for second derivatives)
_ATOMS = 256  # in a part, where there are so many: wide enough for the matrix products

Partials = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
NONE: Partials = (None, None, None, None, None)


class Waves(NamedTuple):
    """Which waves there are, and what they are weighted with.

    The rows of a state (G, R, V) are numbered by group of channels, direction, cos or sin, d, and channel of the group.
    """

    directions: Tensor  # (M, 3), those of the first group, then those of the second, ...
    weights: Tensor | None  # Y (M, A), the components of y mixed in each direction; none: A = 1, the same in all
    group_directions: Sequence[int]  # directions of each group
    group_channels: Sequence[int]  # channels of each group
    graph: Tensor  # (B,) graph of each block of atoms
    num_graphs: int
    one_each: bool  # block g is graph g
    turned: bool  # phases less 90 degrees: for harmonics of odd degree


class _Part(NamedTuple):
    channels: slice
    directions: slice
    rows: slice
    blocks: slice
    atoms: slice


def chunk_bytes(device: torch.device) -> int:
    """Memory of a part: EFA_ADDONS_CHUNK_MB, by default 8 for each thread of a CPU and 512 elsewhere."""
    given = os.environ.get(VARIABLE)
    if not given:
        return torch.get_num_threads() * _CHUNK_OF_THREAD if device.type == "cpu" else _CHUNK_ELSEWHERE
    try:
        size = int(float(given) * 2**20)
    except (ValueError, OverflowError):  # no number, or infinity
        size = 0
    if size < 1:
        raise EFAError(f"{VARIABLE} must be a positive number of megabytes, got '{given}'.")
    return size


def num_rows(waves: Waves, num_d: int) -> int:
    """R, the rows of a state."""
    pairs = zip(waves.group_directions, waves.group_channels, strict=True)
    return 2 * num_d * sum(directions * channels for directions, channels in pairs)


def _parts(waves: Waves, x: Tensor, num_values: int) -> Iterator[_Part]:
    """Parts of directions, blocks and atoms, each with the memory of `chunk_bytes`; atoms change fastest."""
    num_blocks, num_d, _, num_atoms = x.shape
    budget = max(1, chunk_bytes(x.device) // (_ARRAYS * x.element_size()))
    channel = direction = row = 0
    for directions, channels in zip(waves.group_directions, waves.group_channels, strict=True):
        per_direction = 2 * num_d * channels
        per_atom = max(per_direction, num_values if waves.weights is not None else 0)  # features, or y in each direction
        atoms = max(1, min(num_atoms, _ATOMS))
        step = max(1, min(directions, budget // max(per_atom * atoms, per_direction * num_values)))
        atoms = max(1, min(num_atoms, budget // (per_atom * step)))
        blocks = max(1, budget // (step * max(per_atom * atoms, per_direction * num_values))) if atoms == num_atoms else 1
        for first in range(0, directions, step):
            last = min(first + step, directions)
            for block in range(0, num_blocks, blocks):
                for atom in range(0, num_atoms, atoms):
                    yield _Part(
                        slice(channel, channel + channels),
                        slice(direction + first, direction + last),
                        slice(row + first * per_direction, row + last * per_direction),
                        slice(block, min(block + blocks, num_blocks)),
                        slice(atom, min(atom + atoms, num_atoms)),
                    )
        channel, direction, row = channel + channels, direction + directions, row + directions * per_direction


def _along(directions: Tensor, points: Tensor) -> Tensor:
    """u·r: (m, 3), (b, 3, n) -> (b, m, n). Written out: a matrix product would be rounded by TF32 or autocast."""
    u, v, w = directions.unsqueeze(-1).unbind(1)
    x, y, z = points.unsqueeze(2).unbind(1)
    return (x * u).addcmul_(y, v).addcmul_(z, w)


class _Scratch:
    """Memory that one part after another uses: fresh pages cost as much as the arithmetic on them."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.kept: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        size = math.prod(shape)
        if name not in self.kept or self.kept[name].numel() < size:
            self.kept[name] = self.like.new_empty([size])
        return self.kept[name][:size].view(shape)


class _Here:
    """What a part needs: its piece of the arguments, and the phases there."""

    def __init__(self, waves: Waves, part: _Part, x: Tensor, r: Tensor, frequencies: Tensor, scratch: _Scratch) -> None:
        self.waves, self.part, self.scratch = waves, part, scratch
        self.u = waves.directions[part.directions]
        self.frequencies = frequencies[part.channels].view(-1, 1)
        self.r = r[part.blocks, :, part.atoms]
        self.x = self.by_channel(x).contiguous()  # rows of distant addresses share a place in the cache
        self.mixed = waves.weights is not None
        self.along = _along(self.u, self.r)
        num_blocks, num_directions, atoms = self.along.shape
        channels = len(self.frequencies)
        self.shape = [num_blocks, num_directions, 2, x.shape[1], channels, atoms]
        self.phase = scratch("phase", [num_blocks, num_directions, 2, channels, atoms])
        cos, sin = self.phase[:, :, int(waves.turned)], self.phase[:, :, 1 - int(waves.turned)]
        torch.mul(self.along.unsqueeze(2), self.frequencies, out=sin)
        torch.cos(sin, out=cos)
        sin.sin_()
        if waves.turned:  # cos(φ - π/2) = sin φ, sin(φ - π/2) = -cos φ
            self.phase[:, :, 1].neg_()

    def by_channel(self, x: Tensor) -> Tensor:
        """(B, d, C, n) -> (b, 1, d, c, n)."""
        return x[self.part.blocks, :, self.part.channels, self.part.atoms].unsqueeze(1)

    def features(self, x: Tensor, name: str = "features") -> Tensor:
        """[cos φ, sin φ] x, (b, m, 2, d, c, n)."""
        return torch.mul(self.phase.unsqueeze(3), x.unsqueeze(2), out=self.scratch(name, self.shape))

    def weighted(self, y: Tensor) -> Tensor:
        """Y_m·y: (b, A, n, V) -> (b, m, n, V), or (b, n, V) where it is the same for all directions."""
        y = y[self.part.blocks, :, self.part.atoms]
        if not self.mixed:
            return y.squeeze(1)
        assert self.waves.weights is not None
        return torch.einsum("ma,banv->bmnv", self.waves.weights[self.part.directions], y)

    def rows_of(self, state: Tensor) -> Tensor:
        """(G, R, V) -> (b, rows, V)."""
        rows = state[:, self.part.rows]
        return rows[self.part.blocks] if self.waves.one_each else rows[self.waves.graph[self.part.blocks]]

    def add_state(self, state: Tensor, features: Tensor, y: Tensor) -> None:
        """Adds Σ_n features_n ⊗ (Y_m·y_n) to the rows of state."""
        if self.mixed:
            added = torch.matmul(features.flatten(2, 4), y).flatten(1, 2)
        elif self.waves.one_each and features.shape[0] == 1:
            state[self.part.blocks.start, self.part.rows].addmm_(features[0].flatten(0, 3), y[0])
            return
        else:
            added = torch.bmm(features.flatten(1, 4), y)
        if self.waves.one_each:
            state[self.part.blocks, self.part.rows] += added
        else:
            state[:, self.part.rows].index_add_(0, self.waves.graph[self.part.blocks], added)

    def add_values(self, values: Tensor, features: Tensor, rows: Tensor) -> None:
        """Adds what the atoms read: values (B, A, n, V), rows (b, rows, V)."""
        here = values[self.part.blocks, :, self.part.atoms]
        if self.mixed:
            assert self.waves.weights is not None
            read = torch.matmul(features.flatten(2, 4).transpose(2, 3), rows.unflatten(1, [len(self.u), -1]))
            here += torch.einsum("ma,bmnv->banv", self.waves.weights[self.part.directions], read)
        elif features.shape[0] == 1:
            here[0, 0].addmm_(features[0].flatten(0, 3).t(), rows[0])
        else:
            here.squeeze(1).baddbmm_(features.flatten(1, 4).transpose(1, 2), rows)

    def product(self, rows: Tensor, y: Tensor, name: str = "product") -> Tensor:
        """T·(Y_m·y_n), one for each of the features: (b, m, 2, d, c, n)."""
        out = self.scratch(name, self.shape)
        if self.mixed:
            torch.matmul(rows.unflatten(1, [len(self.u), -1]), y.transpose(2, 3), out=out.flatten(2, 4))
        elif rows.shape[0] == 1:
            torch.mm(rows[0], y[0].t(), out=out[0].flatten(0, 3))
        else:
            torch.bmm(rows, y.transpose(1, 2), out=out.flatten(1, 4))
        return out

    def turned_back(self, product: Tensor, straight: bool = True, across: bool = True) -> tuple[Tensor | None, Tensor | None]:
        """cos φ U^cos + sin φ U^sin, and its derivative by φ with U fixed, cos φ U^sin - sin φ U^cos: (b, m, d, c, n) each."""
        cos, sin = self.phase.unsqueeze(3).unbind(2)
        by_cos, by_sin = product.unbind(2)
        shape = [*self.shape[:2], *self.shape[3:]]
        real = imag = None
        if straight:
            real = torch.mul(by_cos, cos, out=self.scratch("real", shape)).addcmul_(by_sin, sin)
        if across:
            imag = torch.mul(by_sin, cos, out=self.scratch("imag", shape)).addcmul_(by_cos, sin, value=-1)
        return real, imag

    def add_points(self, points: Tensor, slopes: Tensor) -> None:
        """Adds Σ_m u_m slopes_m: points (B, 3, n), slopes (b, m, n)."""
        here = points[self.part.blocks, :, self.part.atoms]
        for axis in range(3):
            here[:, axis] += (slopes * self.u[:, axis].view(-1, 1)).sum(1)

    def add_slopes(self, points: Tensor | None, frequencies: Tensor | None, slopes: Tensor) -> None:
        """Adds derivatives by the phases (b, m, c, n) to those by r (B, 3, n) and by ω (C,), where they are wanted."""
        if points is not None:
            self.add_points(points, (slopes * self.frequencies).sum(2))
        if frequencies is not None:
            frequencies[self.part.channels] += (slopes * self.along.unsqueeze(2)).sum([0, 1, 3])


@without_autocast
def partials(
    x: Tensor, y: Tensor | None, r: Tensor, frequencies: Tensor, state: Tensor | None, waves: Waves, needed: Sequence[bool]
) -> Partials:
    """As `ops.waves.partials`."""
    of_x, of_y, of_r, of_frequencies, of_state = needed
    num_values = y.shape[3] if y is not None else state.shape[2]  # type: ignore[union-attr]
    num_components = 1 if waves.weights is None else waves.weights.shape[1]
    by_x = torch.zeros_like(x) if of_x else None
    by_y = x.new_zeros([x.shape[0], num_components, x.shape[3], num_values]) if of_y else None
    by_r = torch.zeros_like(r) if of_r else None
    by_frequencies = torch.zeros_like(frequencies) if of_frequencies else None
    by_state = x.new_zeros([waves.num_graphs, num_rows(waves, x.shape[1]), num_values]) if of_state else None
    scratch = _Scratch(x)
    for part in _parts(waves, x, num_values):
        here = _Here(waves, part, x, r, frequencies, scratch)
        values = None if y is None else here.weighted(y)
        rows = None if state is None else here.rows_of(state)
        if by_y is not None or by_state is not None:
            features = here.features(here.x)
            if by_y is not None:
                assert rows is not None
                here.add_values(by_y, features, rows)
            if by_state is not None:
                assert values is not None
                here.add_state(by_state, features, values)
        if of_x or of_r or of_frequencies:
            assert rows is not None and values is not None
            real, imag = here.turned_back(here.product(rows, values), of_x, of_r or of_frequencies)
            if by_x is not None:
                assert real is not None
                here.by_channel(by_x).squeeze(1).add_(real.sum(1))
            if imag is not None:
                here.add_slopes(by_r, by_frequencies, imag.mul_(here.x).sum(2))
    return by_x, by_y, by_r, by_frequencies, by_state


@without_autocast
def second_partials(
    x: Tensor,
    y: Tensor | None,
    r: Tensor,
    frequencies: Tensor,
    state: Tensor | None,
    waves: Waves,
    along: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> Partials:
    """As `ops.waves.second_partials`."""
    dx, dy, dr, df, dstate = along
    by_x, by_y, by_r, by_frequencies, by_state = (
        torch.zeros_like(part) if part is not None and wanted else None
        for part, wanted in zip((x, y, r, frequencies, state), needed, strict=True)
    )
    of_phase = by_r is not None or by_frequencies is not None
    num_values = y.shape[3] if y is not None else state.shape[2]  # type: ignore[union-attr]
    scratch = _Scratch(x)
    for part in _parts(waves, x, num_values):
        here = _Here(waves, part, x, r, frequencies, scratch)
        values = None if y is None else here.weighted(y)
        rows = None if state is None else here.rows_of(state)
        dvalues = None if dy is None else here.weighted(dy)
        drows = None if dstate is None else here.rows_of(dstate)

        # How far the phases turn along the direction.
        turn = along_dr = None
        if dr is not None:
            along_dr = _along(here.u, dr[part.blocks, :, part.atoms])
            turn = along_dr.unsqueeze(2) * here.frequencies
        if df is not None:
            by_df = here.along.unsqueeze(2) * df[part.channels].view(-1, 1)
            turn = by_df if turn is None else turn.add_(by_df)
        if by_y is not None or by_state is not None:
            changed = _changed(here, dx, turn)
            if by_y is not None:
                if changed is not None and rows is not None:
                    here.add_values(by_y, changed, rows)
                if drows is not None:
                    here.add_values(by_y, here.features(here.x), drows)
            if by_state is not None:
                if changed is not None and values is not None:
                    here.add_state(by_state, changed, values)
                if dvalues is not None:
                    here.add_state(by_state, here.features(here.x), dvalues)

        if by_x is None and not of_phase:
            continue
        slopes = torch.zeros_like(here.along).unsqueeze(2) * here.frequencies
        if rows is not None and values is not None and (dx is not None or turn is not None):
            real, imag = here.turned_back(here.product(rows, values), of_phase and turn is not None)
            assert imag is not None
            if dx is not None and of_phase:
                slopes += (imag * here.by_channel(dx)).sum(2)
            if turn is not None and by_x is not None:
                here.by_channel(by_x).squeeze(1).add_((imag * turn.unsqueeze(2)).sum(1))
            if turn is not None and real is not None:
                slopes -= (real.mul_(here.x).sum(2)).mul_(turn)
                own = imag.mul_(here.x).sum(2)
                if df is not None and by_r is not None:
                    here.add_points(by_r, (own * df[part.channels].view(-1, 1)).sum(2))
                if along_dr is not None and by_frequencies is not None:
                    by_frequencies[part.channels] += (own * along_dr.unsqueeze(2)).sum([0, 1, 3])
        product = None
        if rows is not None and dvalues is not None:
            product = here.product(rows, dvalues)
        if drows is not None and values is not None:
            product = here.product(drows, values) if product is None else product.add_(here.product(drows, values, "features"))
        if product is not None:
            real, imag = here.turned_back(product, by_x is not None, of_phase)
            if by_x is not None:
                assert real is not None
                here.by_channel(by_x).squeeze(1).add_(real.sum(1))
            if imag is not None:
                slopes += imag.mul_(here.x).sum(2)
        here.add_slopes(by_r, by_frequencies, slopes)
    return by_x, by_y, by_r, by_frequencies, by_state


def _changed(here: _Here, dx: Tensor | None, turn: Tensor | None) -> Tensor | None:
    """By how much features change with x along dx and with phases that turn: (b, m, 2, d, c, n)."""
    changed = None if dx is None else here.features(here.by_channel(dx).contiguous(), "changed")
    if turn is None:
        return changed
    cos, sin = here.phase.unbind(2)
    turning = torch.stack([-sin * turn, cos * turn], dim=2).unsqueeze(3)
    if changed is None:
        return torch.mul(turning, here.x.unsqueeze(2), out=here.scratch("changed", here.shape))
    return changed.addcmul_(turning, here.x.unsqueeze(2))
