"""The sums of `ops.waves` as Triton kernels: features are made in registers, tile by tile, and go on to the matrix units.

Three kernels make all derivatives: `state` (of Ψ by T), `read_out` (by y) and `pull` (by x, r and ω). Phases of all groups are
numbered through, channel by channel, and a table says of each which direction, channel and rows of the state it has: a tile of
phases may cross groups, and a group of one direction wastes nothing. Sums are in a fixed order, without atomics.

Along a direction (dx, dr, dω) features E x, E = (cos φ, sin φ), change by E dx + δ E' x, E' = (-sin φ, cos φ), and phases turn
by δ = ω u·dr + dω u·r: second derivatives are the same kernels with these, where dx, dr or dω are given. Arguments that may be
missing are None, and with them go their operations.

Phases are in float32, whatever the products are in. Where nothing else is said, what is loaded has its layout from `ops.waves`.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on")

_EMULATED = tl.constexpr(INTERPRETED)
# A part of kernels. Interpreted it is an ordinary function: Triton's interpreter takes milliseconds to enter one of its own.
part = (lambda function: function) if INTERPRETED else triton.jit
_QUADRANTS = tl.constexpr(0.6366197723675814)  # 2/π
# Added and taken away again it rounds to an integer, which stands in the lowest bits of the sum.
_ROUND = tl.constexpr(12582912.0)
# π/2 = the sum of these; the first two have so few bits that their product with a number of quadrants is exact.
_FIRST, _SECOND, _THIRD = tl.constexpr(1.5703125), tl.constexpr(4.837512969970703e-4), tl.constexpr(7.549790126404332e-8)


@part
def cos_sin(phase, TURNED: tl.constexpr):
    """cos φ and sin φ, or those of φ - 90 degrees; errors below 1e-7 for |φ| up to 1e4, 1e-6 up to 1e5.

    Fitted polynomials between -π/4 and π/4. Half the instructions of a cosine and a sine, and no branch for large phases.
    """
    rounded = phase * _QUADRANTS + _ROUND
    quadrant = rounded.to(tl.int32, bitcast=True)
    if TURNED:
        quadrant -= 1
    number = rounded - _ROUND
    rest = ((phase - number * _FIRST) - number * _SECOND) - number * _THIRD
    square = rest * rest
    sin = rest + rest * square * (-0.16666664 + square * (0.008332747 - 0.00019587639 * square))
    cos = (1.0 - 0.5 * square) + square * square * (0.041666664 + square * (-0.0013888301 + 2.4547689e-5 * square))
    odd = (quadrant & 1) != 0
    first, second = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    return tl.where(((quadrant + 1) & 2) != 0, -first, first), tl.where((quadrant & 2) != 0, -second, second)


@part
def to_tf32(x):
    """Rounded to the 10 bits of TF32: left to themselves, the matrix units cut them off."""
    if _EMULATED:
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@part
def to_bf16(x):
    """In bfloat16; interpreted rounded to it (the interpreter multiplies the bits of bfloat16 as if they were integers)."""
    if _EMULATED:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    else:
        return x.to(tl.bfloat16)


@part
def multiply_add(a, b, total, PRECISION: tl.constexpr):
    """total + a b. tf32x3: what TF32 leaves of a and b is multiplied as well, all but the rest with the rest."""
    if PRECISION == "ieee":
        total = tl.dot(a, b, total, input_precision="ieee")
    elif PRECISION == "bf16":
        total = tl.dot(to_bf16(a), to_bf16(b), total)
    elif PRECISION == "tf32":
        total = tl.dot(to_tf32(a), to_tf32(b), total, input_precision="tf32")
    else:
        big_a, big_b = to_tf32(a), to_tf32(b)
        total = tl.dot(to_tf32(a - big_a), big_b, total, input_precision="tf32")
        total = tl.dot(big_a, to_tf32(b - big_b), total, input_precision="tf32")
        total = tl.dot(big_a, big_b, total, input_precision="tf32")
    return total


@part
def vectors(v, offset, step, mask):
    """The three components of v at offset, which lie `step` apart."""
    first = tl.load(v + offset, mask=mask, other=0.0)
    second = tl.load(v + offset + step, mask=mask, other=0.0)
    return first, second, tl.load(v + offset + 2 * step, mask=mask, other=0.0)


@part
def phases(table, number, num_phases):
    """Of each phase: direction, channel, row of its cos of the first d, and rows between one d and the next."""
    mask = number < num_phases
    direction = tl.load(table + number, mask=mask, other=0)
    channel = tl.load(table + num_phases + number, mask=mask, other=0)
    row = tl.load(table + 2 * num_phases + number, mask=mask, other=0)
    return mask, direction, channel, row, tl.load(table + 3 * num_phases + number, mask=mask, other=0)


@part
def turned_by(along, along_dr, frequency, d_frequency, dr, df):
    """δ = ω u·dr + dω u·r, of what is given of dr and dω."""
    if dr is None:
        return along * d_frequency
    elif df is None:
        return along_dr * frequency
    else:
        return along_dr * frequency + along * d_frequency


@part
def changed(cos, sin, x, turn, dx, offset, mask, HAS_TURN: tl.constexpr):
    """Features of cos and sin: E x, or their change E dx + δ E' x where dx or a turn is given."""
    if dx is None:
        if HAS_TURN:
            return -(turn * sin) * x, (turn * cos) * x
        else:
            return cos * x, sin * x
    else:
        d = tl.load(dx + offset, mask=mask, other=0.0)
        if HAS_TURN:
            return cos * d - (turn * sin) * x, sin * d + (turn * cos) * x
        else:
            return cos * d, sin * d


@triton.jit
def state(
    x, y, r, dx, dy, dr, df, weights, directions, frequencies, table, blocks, out,
    num_atoms, num_phases, num_rows, num_channels, num_graphs,
    NUM_D: tl.constexpr, NUM_COMPONENTS: tl.constexpr, NUM_VALUES: tl.constexpr, TURNED: tl.constexpr,
    PRECISION: tl.constexpr, ATOMS: tl.constexpr, PHASES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """out (splits, G, R, V) += Σ_n features_n ⊗ (Y_m·y_n) of each graph; along a direction, changed features ⊗ y + E x ⊗ dy.

    One program: a tile of phases with two d, a graph, a tile of values; the atoms are shared between `splits` programs.

    Args:
        blocks: (G + 1,) first block of each graph, and their number.
    """
    HAS_TURN: tl.constexpr = dr is not None or df is not None
    tiles, pairs = tl.cdiv(num_phases, PHASES), (NUM_D + 1) // 2
    program = tl.program_id(0)
    graph = (program // (tiles * pairs)).to(tl.int64)
    d = program // tiles % pairs * 2
    number = program % tiles * PHASES + tl.arange(0, PHASES)
    mask_p, direction, channel, row, step = phases(table, number, num_phases)
    ux, uy, uz = vectors(directions, 3 * direction[:, None], 1, mask_p[:, None])
    frequency = tl.load(frequencies + channel, mask=mask_p, other=0.0)[:, None]
    d_frequency = frequency
    if df is not None:
        d_frequency = tl.load(df + channel, mask=mask_p, other=0.0)[:, None]
    value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    split, splits = tl.program_id(2), tl.num_programs(2)
    mask_q = number < tl.where(d + 1 < NUM_D, num_phases, 0)  # where there is a second d

    cos_a = tl.zeros([PHASES, VALUES], tl.float32)
    sin_a = tl.zeros([PHASES, VALUES], tl.float32)
    cos_b = tl.zeros([PHASES, VALUES], tl.float32)
    sin_b = tl.zeros([PHASES, VALUES], tl.float32)
    first_block, last_block = tl.load(blocks + graph), tl.load(blocks + graph + 1)
    for block in range(first_block, last_block):
        for start in range(split * ATOMS, num_atoms, splits * ATOMS):
            atom = start + tl.arange(0, ATOMS)
            mask_n = atom < num_atoms
            mask = mask_p[:, None] & mask_n[None, :]
            x0, x1, x2 = vectors(r, (block * 3 * num_atoms + atom)[None, :], num_atoms, mask_n[None, :])
            along = x0 * ux + x1 * uy + x2 * uz
            cos, sin = cos_sin(along * frequency, TURNED)
            along_dr = along
            if dr is not None:
                d0, d1, d2 = vectors(dr, (block * 3 * num_atoms + atom)[None, :], num_atoms, mask_n[None, :])
                along_dr = d0 * ux + d1 * uy + d2 * uz
            turn = along
            if HAS_TURN:
                turn = turned_by(along, along_dr, frequency, d_frequency, dr, df)
            offset_a = ((block * NUM_D + d) * num_channels + channel[:, None]) * num_atoms + atom[None, :]
            offset_b = offset_a + num_channels * num_atoms
            x_a = tl.load(x + offset_a, mask=mask, other=0.0)
            mask_b = mask_q[:, None] & mask_n[None, :]
            x_b = tl.load(x + offset_b, mask=mask_b, other=0.0)
            fc_a, fs_a = changed(cos, sin, x_a, turn, dx, offset_a, mask, HAS_TURN)
            fc_b, fs_b = changed(cos, sin, x_b, turn, dx, offset_b, mask_b, HAS_TURN)
            for component in range(NUM_COMPONENTS):
                place = ((block * NUM_COMPONENTS + component) * num_atoms + atom)[:, None] * NUM_VALUES + value[None, :]
                mask_v = mask_n[:, None] & (value < NUM_VALUES)[None, :]
                factor = 1.0
                if weights is not None:
                    factor = tl.load(weights + direction * NUM_COMPONENTS + component, mask=mask_p, other=0.0)[:, None]
                if y is not None:
                    here = tl.load(y + place, mask=mask_v, other=0.0)
                    cos_a = multiply_add(fc_a * factor, here, cos_a, PRECISION)
                    sin_a = multiply_add(fs_a * factor, here, sin_a, PRECISION)
                    cos_b = multiply_add(fc_b * factor, here, cos_b, PRECISION)
                    sin_b = multiply_add(fs_b * factor, here, sin_b, PRECISION)
                if dy is not None:
                    here = tl.load(dy + place, mask=mask_v, other=0.0)
                    cos_a = multiply_add(cos * x_a * factor, here, cos_a, PRECISION)
                    sin_a = multiply_add(sin * x_a * factor, here, sin_a, PRECISION)
                    cos_b = multiply_add(cos * x_b * factor, here, cos_b, PRECISION)
                    sin_b = multiply_add(sin * x_b * factor, here, sin_b, PRECISION)
    rows = (split * num_graphs + graph) * num_rows + row + d * step
    place = rows[:, None] * NUM_VALUES + value[None, :]
    mask = mask_p[:, None] & (value < NUM_VALUES)[None, :]
    to_sin = (NUM_D * step)[:, None] * NUM_VALUES
    to_b = step[:, None] * NUM_VALUES
    tl.store(out + place, cos_a, mask=mask)
    tl.store(out + place + to_sin, sin_a, mask=mask)
    mask_b = mask_q[:, None] & (value < NUM_VALUES)[None, :]
    tl.store(out + place + to_b, cos_b, mask=mask_b)
    tl.store(out + place + to_b + to_sin, sin_b, mask=mask_b)


@triton.jit
def read_out(
    x, t, r, dx, dt, dr, df, weights, directions, frequencies, table, graphs, out,
    num_atoms, num_phases, num_rows, num_channels, num_blocks,
    NUM_D: tl.constexpr, NUM_COMPONENTS: tl.constexpr, NUM_VALUES: tl.constexpr, TURNED: tl.constexpr,
    PRECISION: tl.constexpr, ATOMS: tl.constexpr, PHASES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """out (splits, B, A, n, V) = Σ_m Y_m Σ features_n T; along a direction, changed features T + E x dT.

    One program: a tile of atoms of a block, a tile of the A V columns; the phases are shared between `splits` programs.

    Args:
        graphs: (B,) graph of each block.
    """
    HAS_TURN: tl.constexpr = dr is not None or df is not None
    tiles = tl.cdiv(num_atoms, ATOMS)
    block = (tl.program_id(0) // tiles).to(tl.int64)
    atom = tl.program_id(0) % tiles * ATOMS + tl.arange(0, ATOMS)
    mask_n = atom < num_atoms
    x0, x1, x2 = vectors(r, (block * 3 * num_atoms + atom)[:, None], num_atoms, mask_n[:, None])
    if dr is not None:
        d0, d1, d2 = vectors(dr, (block * 3 * num_atoms + atom)[:, None], num_atoms, mask_n[:, None])
    column = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    component, value = column // NUM_VALUES, column % NUM_VALUES
    mask_v = column < NUM_COMPONENTS * NUM_VALUES
    split, splits = tl.program_id(2), tl.num_programs(2)
    first_row = tl.load(graphs + block).to(tl.int64) * num_rows

    total = tl.zeros([ATOMS, VALUES], tl.float32)
    for start in range(split * PHASES, num_phases, splits * PHASES):
        mask_p, direction, channel, row, step = phases(table, start + tl.arange(0, PHASES), num_phases)
        ux, uy, uz = vectors(directions, 3 * direction[None, :], 1, mask_p[None, :])
        frequency = tl.load(frequencies + channel, mask=mask_p, other=0.0)[None, :]
        along = x0 * ux + x1 * uy + x2 * uz
        cos, sin = cos_sin(along * frequency, TURNED)
        along_dr = along
        if dr is not None:
            along_dr = d0 * ux + d1 * uy + d2 * uz
        d_frequency = frequency
        if df is not None:
            d_frequency = tl.load(df + channel, mask=mask_p, other=0.0)[None, :]
        turn = along
        if HAS_TURN:
            turn = turned_by(along, along_dr, frequency, d_frequency, dr, df)
        mask = mask_n[:, None] & mask_p[None, :]
        mask_t = mask_p[:, None] & mask_v[None, :]
        if weights is not None:
            place = direction[:, None] * NUM_COMPONENTS + component[None, :]
            factor = tl.load(weights + place, mask=mask_t, other=0.0)
        for pair in range(0, NUM_D, 2):  # a loop of one turn is none: that over the phases is then the innermost
            for other in tl.static_range(2):
                d = pair + other
                if d < NUM_D:
                    offset = ((block * NUM_D + d) * num_channels + channel[None, :]) * num_atoms + atom[:, None]
                    here = tl.load(x + offset, mask=mask, other=0.0)
                    place = (first_row + row + d * step)[:, None] * NUM_VALUES + value[None, :]
                    to_sin = (NUM_D * step)[:, None] * NUM_VALUES
                    if t is not None:
                        fc, fs = changed(cos, sin, here, turn, dx, offset, mask, HAS_TURN)
                        t_cos = tl.load(t + place, mask=mask_t, other=0.0)
                        t_sin = tl.load(t + place + to_sin, mask=mask_t, other=0.0)
                        if weights is not None:
                            t_cos, t_sin = t_cos * factor, t_sin * factor
                        total = multiply_add(fc, t_cos, total, PRECISION)
                        total = multiply_add(fs, t_sin, total, PRECISION)
                    if dt is not None:
                        t_cos = tl.load(dt + place, mask=mask_t, other=0.0)
                        t_sin = tl.load(dt + place + to_sin, mask=mask_t, other=0.0)
                        if weights is not None:
                            t_cos, t_sin = t_cos * factor, t_sin * factor
                        total = multiply_add(cos * here, t_cos, total, PRECISION)
                        total = multiply_add(sin * here, t_sin, total, PRECISION)
    place = (((split * num_blocks + block) * NUM_COMPONENTS + component)[None, :] * num_atoms + atom[:, None]) * NUM_VALUES
    tl.store(out + place + value[None, :], total, mask=mask_n[:, None] & mask_v[None, :])


@part
def products(
    y, t, atom, mask_n, place_y, row, mask_p, to_sin, weights, direction, num_atoms, cos_total, sin_total,
    NUM_COMPONENTS: tl.constexpr, NUM_VALUES: tl.constexpr, PRECISION: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """U = T·(Y_m·y), for the rows of cos and of sin, (n, m) each, added to what is there."""
    for component in range(NUM_COMPONENTS):
        for start in range(0, NUM_VALUES, VALUES):
            value = start + tl.arange(0, VALUES)
            mask_v = value < NUM_VALUES
            place = (place_y + component * num_atoms + atom)[:, None] * NUM_VALUES + value[None, :]
            here = tl.load(y + place, mask=mask_n[:, None] & mask_v[None, :], other=0.0)
            place_t = row[None, :] * NUM_VALUES + value[:, None]
            mask_t = mask_p[None, :] & mask_v[:, None]
            t_cos = tl.load(t + place_t, mask=mask_t, other=0.0)
            t_sin = tl.load(t + place_t + to_sin * NUM_VALUES, mask=mask_t, other=0.0)
            if weights is not None:
                factor = tl.load(weights + direction * NUM_COMPONENTS + component, mask=mask_p, other=0.0)[None, :]
                t_cos, t_sin = t_cos * factor, t_sin * factor
            cos_total = multiply_add(here, t_cos, cos_total, PRECISION)
            sin_total = multiply_add(here, t_sin, sin_total, PRECISION)
    return cos_total, sin_total


@triton.jit
def pull(
    x, y, t, r, dx, dy, dt, dr, df, weights, directions, frequencies, table, runs, graphs, by_x, by_r, by_frequencies,
    num_atoms, num_phases, num_rows, num_channels, num_blocks, SECOND: tl.constexpr,
    NUM_D: tl.constexpr, NUM_COMPONENTS: tl.constexpr, NUM_VALUES: tl.constexpr, TURNED: tl.constexpr,
    PRECISION: tl.constexpr, ATOMS: tl.constexpr, PHASES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Derivatives by x (B, d, C, n), r (splits, B, 3, n) and ω (programs, C), or theirs along a direction (SECOND).

    With U = T·(Y_m·y): cos φ U^cos + sin φ U^sin is the derivative by x, summed over directions, and its own by φ,
    cos φ U^sin - sin φ U^cos times x, how Ψ changes with the phase. One program: a tile of atoms of a block, and its share of
    the channels. Each of by_x, by_r and by_frequencies may be None.

    Args:
        runs: (2, C) first phase of each channel, and how many it has.
    """
    HAS_TURN: tl.constexpr = dr is not None or df is not None
    ALONG: tl.constexpr = SECOND and (HAS_TURN or dx is not None) and y is not None and t is not None
    OF_PHASE: tl.constexpr = by_r is not None or by_frequencies is not None
    tiles = tl.cdiv(num_atoms, ATOMS)
    program = tl.program_id(0)
    block = (program // tiles).to(tl.int64)
    atom = program % tiles * ATOMS + tl.arange(0, ATOMS)
    mask_n = atom < num_atoms
    place_r = block * 3 * num_atoms + atom
    place_y = block * NUM_COMPONENTS * num_atoms
    x0, x1, x2 = vectors(r, place_r[:, None], num_atoms, mask_n[:, None])
    if dr is not None:
        d0, d1, d2 = vectors(dr, place_r[:, None], num_atoms, mask_n[:, None])
    split, splits = tl.program_id(1), tl.num_programs(1)
    first_row = tl.load(graphs + block).to(tl.int64) * num_rows

    r0 = tl.zeros([ATOMS], tl.float32)
    r1 = tl.zeros([ATOMS], tl.float32)
    r2 = tl.zeros([ATOMS], tl.float32)
    for channel in range(split, num_channels, splits):
        frequency = tl.load(frequencies + channel)
        d_frequency = frequency
        if df is not None:
            d_frequency = tl.load(df + channel)
        first_phase, count = tl.load(runs + channel), tl.load(runs + num_channels + channel)
        w = 0.0
        for d in range(0, NUM_D, 2):
            x_a = tl.zeros([ATOMS], tl.float32)
            x_b = tl.zeros([ATOMS], tl.float32)
            for start in range(0, count, PHASES):
                number = start + tl.arange(0, PHASES)
                mask_p, direction, _, row, step = phases(table, first_phase + number, num_phases)
                mask_p = mask_p & (number < count)
                ux, uy, uz = vectors(directions, 3 * direction[None, :], 1, mask_p[None, :])
                along = x0 * ux + x1 * uy + x2 * uz
                cos, sin = cos_sin(along * frequency, TURNED)
                along_dr = along
                if dr is not None:
                    along_dr = d0 * ux + d1 * uy + d2 * uz
                turn = along
                if HAS_TURN:
                    turn = turned_by(along, along_dr, frequency, d_frequency, dr, df)
                slopes = tl.zeros([ATOMS, PHASES], tl.float32)
                own = tl.zeros([ATOMS, PHASES], tl.float32)
                for other in tl.static_range(2):
                    if d + other < NUM_D:
                        offset = ((block * NUM_D + d + other) * num_channels + channel) * num_atoms + atom
                        here = tl.load(x + offset, mask=mask_n, other=0.0)[:, None]
                        rows = first_row + row + (d + other) * step
                        to_sin = (NUM_D * step)[None, :]
                        added = tl.zeros([ATOMS], tl.float32)
                        u_cos = tl.zeros([ATOMS, PHASES], tl.float32)
                        u_sin = tl.zeros([ATOMS, PHASES], tl.float32)
                        if ALONG:
                            u_cos, u_sin = products(
                                y, t, atom, mask_n, place_y, rows, mask_p, to_sin, weights, direction, num_atoms, u_cos, u_sin,
                                NUM_COMPONENTS, NUM_VALUES, PRECISION, VALUES,
                            )  # fmt: skip
                            real, imag = cos * u_cos + sin * u_sin, cos * u_sin - sin * u_cos
                            if dx is not None:
                                slopes += imag * tl.load(dx + offset, mask=mask_n, other=0.0)[:, None]
                            if HAS_TURN:
                                added += tl.sum(imag * turn, 1)
                                slopes -= real * here * turn
                                own += imag * here
                            u_cos = tl.zeros([ATOMS, PHASES], tl.float32)
                            u_sin = tl.zeros([ATOMS, PHASES], tl.float32)
                        if SECOND:
                            if dy is not None and t is not None:
                                u_cos, u_sin = products(
                                    dy, t, atom, mask_n, place_y, rows, mask_p, to_sin, weights, direction, num_atoms,
                                    u_cos, u_sin, NUM_COMPONENTS, NUM_VALUES, PRECISION, VALUES,
                                )  # fmt: skip
                            if dt is not None and y is not None:
                                u_cos, u_sin = products(
                                    y, dt, atom, mask_n, place_y, rows, mask_p, to_sin, weights, direction, num_atoms,
                                    u_cos, u_sin, NUM_COMPONENTS, NUM_VALUES, PRECISION, VALUES,
                                )  # fmt: skip
                        else:
                            u_cos, u_sin = products(
                                y, t, atom, mask_n, place_y, rows, mask_p, to_sin, weights, direction, num_atoms, u_cos, u_sin,
                                NUM_COMPONENTS, NUM_VALUES, PRECISION, VALUES,
                            )  # fmt: skip
                        if by_x is not None:
                            added += tl.sum(cos * u_cos + sin * u_sin, 1)
                            if other == 0:
                                x_a += added
                            else:
                                x_b += added
                        if OF_PHASE:
                            slopes += (cos * u_sin - sin * u_cos) * here
                if by_r is not None:
                    pulled = slopes * frequency
                    if SECOND and df is not None:
                        pulled += own * d_frequency
                    r0 += tl.sum(pulled * ux, 1)
                    r1 += tl.sum(pulled * uy, 1)
                    r2 += tl.sum(pulled * uz, 1)
                if by_frequencies is not None:
                    if SECOND and dr is not None:
                        w += tl.sum(slopes * along + own * along_dr)
                    else:
                        w += tl.sum(slopes * along)
            if by_x is not None:
                offset = ((block * NUM_D + d) * num_channels + channel) * num_atoms + atom
                tl.store(by_x + offset, x_a, mask=mask_n)
                if d + 1 < NUM_D:
                    tl.store(by_x + offset + num_channels * num_atoms, x_b, mask=mask_n)
        if by_frequencies is not None:
            tl.store(by_frequencies + program.to(tl.int64) * num_channels + channel, w)
    if by_r is not None:
        place = split.to(tl.int64) * num_blocks * 3 * num_atoms + place_r
        tl.store(by_r + place, r0, mask=mask_n)
        tl.store(by_r + place + num_atoms, r1, mask=mask_n)
        tl.store(by_r + place + 2 * num_atoms, r2, mask=mask_n)
