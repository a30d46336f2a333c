"""The sums of `ops.waves` as Triton kernels: features are made in registers, tile by tile, and go on to the matrix units.

Three kernels make all derivatives: `state` (of Ψ by T), `read_out` (by y) and `pull` (by x, r and ω). Before them `arrange`
puts y and T in the order in which matrix units read them, rounded: rounding and turning a tile costs more than multiplying it.

Phases are numbered channel by channel, and each channel is filled up to whole tiles of them (`triton_waves.Grid`): all of a
tile have one channel, so that features of atoms are vectors, and what is a product is as well. Rows of T that phases do not
have are zeros. Sums are in a fixed order, without atomics.

With k = ω u a phase is φ = k·r. Along a direction (dx, dr, dω) features E x, E = (cos φ, sin φ), change by E dx + δ E' x,
E' = (-sin φ, cos φ), and phases turn by δ = k·dr + dk·r: second derivatives are the same kernels with these, where dx, dr or
dk are given. Arguments that may be missing are None, and with them go their operations.

Phases are in float32, whatever the products are in. Where nothing else is said, what is loaded has its layout from `ops.waves`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from efa_addons.ops.backends import interpreted

_EMULATED = tl.constexpr(interpreted())
# A part of kernels. Interpreted it is an ordinary function: Triton's interpreter takes milliseconds to enter one of its own.
part = (lambda function: function) if interpreted() else triton.jit
_QUADRANTS = tl.constexpr(0.6366197723675814)  # 2/π
# Added and taken away again it rounds to an integer, which stands in the lowest bits of the sum.
_ROUND = tl.constexpr(12582912.0)
# π/2 = the sum of these; the first two have so few bits that their product with a number of quadrants is exact.
_FIRST, _SECOND, _THIRD = tl.constexpr(1.5703125), tl.constexpr(4.837512969970703e-4), tl.constexpr(7.549790126404332e-8)
# What is cut off a number behind its 10th bit, half a bit of a mantissa between 1 and 2, is 2^-11 / (2 ln 2) of it on average.
_WHOLE = tl.constexpr(1.0 + 0.7213475204444817 * 2.0**-11)


@part
def cos_sin(phase, TURNED: tl.constexpr, PRECISION: tl.constexpr):
    """cos φ and sin φ, or those of φ - 90 degrees; errors below 1e-7 for |φ| up to 1e4, 1e-6 up to 1e5.

    Fitted polynomials between -π/4 and π/4: half the instructions of a cosine and a sine, and no branch for large phases. For
    tf32 and bf16, which round away more, the device's own approximation (errors of 4e-7 plus 1e-7 for each radian).
    """
    if (PRECISION == "tf32" or PRECISION == "bf16") and not _EMULATED:
        cos = tl.inline_asm_elementwise("cos.approx.f32 $0, $1;", "=r,r", [phase], dtype=tl.float32, is_pure=True, pack=1)
        sin = tl.inline_asm_elementwise("sin.approx.f32 $0, $1;", "=r,r", [phase], dtype=tl.float32, is_pure=True, pack=1)
        if TURNED:
            return sin, -cos
        else:
            return cos, sin
    else:
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
        # the second bit of the quadrant (plus one) is the sign of the sine (of the cosine)
        return negated(first, (quadrant + 1) << 30), negated(second, quadrant << 30)


@part
def negated(x, bits):
    """-x where the first of the bits is set."""
    return (x.to(tl.int32, bitcast=True) ^ (bits & -0x80000000)).to(tl.float32, bitcast=True)


@part
def to_tf32(x, NATIVE: tl.constexpr):
    """Rounded to the 10 bits of TF32: left to themselves, the matrix units cut them off.

    Args:
        NATIVE: the device has an instruction for it (from compute capability 9.0 on; to even where both are as near).
    """
    if _EMULATED:
        bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
        return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    elif NATIVE:
        return tl.inline_asm_elementwise("cvt.rn.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return tl.inline_asm_elementwise("cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)


@part
def cut(x):
    """What the matrix units take of a float32, its first 10 bits. Only interpreted something has to be done for it."""
    if _EMULATED:
        return (x.to(tl.int32, bitcast=True) & -0x2000).to(tl.float32, bitcast=True)
    else:
        return x


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
def rounded(x, PRECISION: tl.constexpr, NATIVE: tl.constexpr):
    """A factor as the matrix units take it, the larger part of it for tf32x3."""
    if PRECISION == "ieee":
        return x
    elif PRECISION == "bf16":
        return to_bf16(x)
    else:
        return to_tf32(x, NATIVE)


@part
def multiply_add(a, a_rest, b, b_rest, total, PRECISION: tl.constexpr):
    """total + a b, of rounded factors. tf32x3: with what TF32 leaves of each, all but the rest with the rest."""
    if PRECISION == "ieee":
        return tl.dot(a, b, total, input_precision="ieee")
    elif PRECISION == "bf16":
        return tl.dot(a, b, total)
    elif PRECISION == "tf32":
        return tl.dot(a, b, total, input_precision="tf32")
    else:
        total = tl.dot(a_rest, b, total, input_precision="tf32")
        total = tl.dot(a, b_rest, total, input_precision="tf32")
        return tl.dot(a, b, total, input_precision="tf32")


@part
def add_product(features, source, place, size, total, PRECISION: tl.constexpr, NATIVE: tl.constexpr):
    """total + features b. At `place` (N, K) lies the transpose of b, `size` behind it what rounding took from it.

    For tf32 the features are cut off, not rounded, which is as exact once the sum is made `whole`.
    """
    b = tl.trans(tl.load(source + place))
    if PRECISION == "tf32x3":
        a, rest = to_tf32(features, NATIVE), tl.trans(tl.load(source + size + place))
        return multiply_add(a, cut(features - a), b, rest, total, PRECISION)
    elif PRECISION == "tf32":
        a = cut(features)
        return multiply_add(a, a, b, b, total, PRECISION)
    else:
        a = rounded(features, PRECISION, NATIVE)
        return multiply_add(a, a, b, b, total, PRECISION)


@part
def whole(total, PRECISION: tl.constexpr):
    """A sum of `add_product`, with what features lost there on average."""
    if PRECISION == "tf32":
        return total * _WHOLE
    else:
        return total


@triton.jit
def arrange(
    source, rows, out, num_items, num_out, size,
    NUM_VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr,
    NATIVE: tl.constexpr, ITEMS: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """From source (L, I, V) out (parts, L, I', V') or, transposed, (parts, L, V', I'): rounded, and what is missing zero.

    Args:
        rows: (I',) item of the source for each, negative for none; None: the same.
        num_items, num_out, size: I, I' and that of a part, L I' V'; the second part of two is what rounding took away.
    """
    tiles = num_out // ITEMS
    outer = (tl.program_id(0) // tiles).to(tl.int64)
    number = tl.program_id(0) % tiles * ITEMS + tl.arange(0, ITEMS)
    value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    item = number
    if rows is not None:
        item = tl.load(rows + number)
    mask = ((item >= 0) & (item < num_items))[:, None] & (value < NUM_VALUES)[None, :]
    here = tl.load(source + (outer * num_items + item)[:, None] * NUM_VALUES + value[None, :], mask=mask, other=0.0)
    if TRANSPOSED:
        place = (outer * PADDED_VALUES + value)[None, :] * num_out + number[:, None]
    else:
        place = (outer * num_out + number)[:, None] * PADDED_VALUES + value[None, :]
    large = rounded(here, PRECISION, NATIVE)
    tl.store(out + place, large)
    if PRECISION == "tf32x3":
        tl.store(out + size + place, to_tf32(here - large, NATIVE))


@part
def vectors(v, offset, step):
    """The three components of v at offset, which lie `step` apart."""
    return tl.load(v + offset), tl.load(v + offset + step), tl.load(v + offset + 2 * step)


@part
def dot3(a0, a1, a2, b0, b1, b2):
    return a0 * b0 + a1 * b1 + a2 * b2


@part
def turned_by(k0, k1, k2, r0, r1, r2, dk0, dk1, dk2, d0, d1, d2, OF_R: tl.constexpr, OF_K: tl.constexpr):
    """δ = k·dr + dk·r, of what is given of dr (d) and dk, one of them at least."""
    if OF_R and OF_K:
        return dot3(k0, k1, k2, d0, d1, d2) + dot3(dk0, dk1, dk2, r0, r1, r2)
    elif OF_K:
        return dot3(dk0, dk1, dk2, r0, r1, r2)
    else:
        return dot3(k0, k1, k2, d0, d1, d2)


@part
def changed(cos, sin, x, turn, dx, HAS_TURN: tl.constexpr, HAS_CHANGE: tl.constexpr):
    """Features of cos and sin: E x, or their change E dx + δ E' x where dx or a turn is given."""
    if HAS_TURN:
        first, second = -(turn * sin) * x, (turn * cos) * x
        if HAS_CHANGE:
            first, second = first + cos * dx, second + sin * dx
        return first, second
    elif HAS_CHANGE:
        return cos * dx, sin * dx
    else:
        return cos * x, sin * x


@part
def by_channels(x, channel, num_atoms, atom, PHASES: tl.constexpr, ATOMS: tl.constexpr, HALVES: tl.constexpr):
    """x of the atoms as each phase's channel has it, (PHASES, ATOMS)."""
    here = tl.load(x + channel[:, None] * num_atoms + atom[None, :])
    return tl.reshape(tl.broadcast_to(here[:, None, :], HALVES, PHASES // HALVES, ATOMS), PHASES, ATOMS)


@triton.jit(do_not_specialize=["num_graphs"])
def state(
    x, y, r, k, dx, dy, dr, dk, weights, channels, rows, blocks, out,
    num_atoms, num_items, num_phases, num_rows, num_channels, num_graphs, size,
    NUM_D: tl.constexpr, NUM_COMPONENTS: tl.constexpr, NUM_VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr, NATIVE: tl.constexpr, ATOMS: tl.constexpr, PHASES: tl.constexpr,
    HALVES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """out (splits, G, R, V) += Σ_n features_n ⊗ (Y_m·y_n) of each graph; along a direction, changed features ⊗ y + E x ⊗ dy.

    One program: a tile of phases with two d, a graph, a tile of values; the atoms are shared between `splits` programs.

    Args:
        y, dy: (parts, B A, V', n'), arranged and transposed; num_items, size: n' and that of a part.
        k, dk: (3, Φ'); weights: (A, Φ'); channels: of each tile of PHASES / HALVES phases.
        rows: (2, Φ') row of each phase's cos of the first d, negative for none, and rows between one d and the next.
        blocks: (G + 1,) first block of each graph, and their number.
    """
    HAS_TURN: tl.constexpr = dr is not None or dk is not None
    HAS_CHANGE: tl.constexpr = dx is not None
    tiles, pairs = num_phases // PHASES, (NUM_D + 1) // 2
    program = tl.program_id(0)
    graph = (program // (tiles * pairs)).to(tl.int64)
    d = program // tiles % pairs * 2
    tile = program % tiles
    number = tile * PHASES + tl.arange(0, PHASES)
    channel = tl.load(channels + tile * HALVES + tl.arange(0, HALVES))
    k0, k1, k2 = vectors(k, number[:, None], num_phases)
    dk0, dk1, dk2 = k0, k1, k2
    if dk is not None:
        dk0, dk1, dk2 = vectors(dk, number[:, None], num_phases)
    value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    split, splits = tl.program_id(2), tl.num_programs(2)

    cos_a = tl.zeros([PHASES, VALUES], tl.float32)
    sin_a = tl.zeros([PHASES, VALUES], tl.float32)
    cos_b = tl.zeros([PHASES, VALUES], tl.float32)
    sin_b = tl.zeros([PHASES, VALUES], tl.float32)
    first_block, last_block = tl.load(blocks + graph), tl.load(blocks + graph + 1)
    for block in range(first_block, last_block):
        for start in range(split * ATOMS, num_atoms, splits * ATOMS):
            item = start + tl.arange(0, ATOMS)
            atom = tl.minimum(item, num_atoms - 1)
            place_r = (block * 3 * num_atoms + atom)[None, :]
            r0, r1, r2 = vectors(r, place_r, num_atoms)
            cos, sin = cos_sin(dot3(k0, k1, k2, r0, r1, r2), TURNED, PRECISION)
            turn = cos
            if HAS_TURN:
                d0, d1, d2 = r0, r1, r2
                if dr is not None:
                    d0, d1, d2 = vectors(dr, place_r, num_atoms)
                turn = turned_by(k0, k1, k2, r0, r1, r2, dk0, dk1, dk2, d0, d1, d2, dr is not None, dk is not None)
            of_a = (block * NUM_D + d) * num_channels * num_atoms
            of_b = (block * NUM_D + tl.minimum(d + 1, NUM_D - 1)) * num_channels * num_atoms
            x_a = by_channels(x + of_a, channel, num_atoms, atom, PHASES, ATOMS, HALVES)
            x_b = by_channels(x + of_b, channel, num_atoms, atom, PHASES, ATOMS, HALVES)
            dx_a, dx_b = x_a, x_b
            if HAS_CHANGE:
                dx_a = by_channels(dx + of_a, channel, num_atoms, atom, PHASES, ATOMS, HALVES)
                dx_b = by_channels(dx + of_b, channel, num_atoms, atom, PHASES, ATOMS, HALVES)
            for component in range(NUM_COMPONENTS):
                fc, fs = cos, sin
                if weights is not None:
                    factor = tl.load(weights + component * num_phases + number)[:, None]
                    fc, fs = cos * factor, sin * factor
                place = ((block * NUM_COMPONENTS + component) * PADDED_VALUES + value)[:, None] * num_items + item[None, :]
                if y is not None:
                    here_cos, here_sin = changed(fc, fs, x_a, turn, dx_a, HAS_TURN, HAS_CHANGE)
                    cos_a = add_product(here_cos, y, place, size, cos_a, PRECISION, NATIVE)
                    sin_a = add_product(here_sin, y, place, size, sin_a, PRECISION, NATIVE)
                    here_cos, here_sin = changed(fc, fs, x_b, turn, dx_b, HAS_TURN, HAS_CHANGE)
                    cos_b = add_product(here_cos, y, place, size, cos_b, PRECISION, NATIVE)
                    sin_b = add_product(here_sin, y, place, size, sin_b, PRECISION, NATIVE)
                if dy is not None:
                    cos_a = add_product(fc * x_a, dy, place, size, cos_a, PRECISION, NATIVE)
                    sin_a = add_product(fs * x_a, dy, place, size, sin_a, PRECISION, NATIVE)
                    cos_b = add_product(fc * x_b, dy, place, size, cos_b, PRECISION, NATIVE)
                    sin_b = add_product(fs * x_b, dy, place, size, sin_b, PRECISION, NATIVE)
    row, step = tl.load(rows + number), tl.load(rows + num_phases + number)
    place = ((split * num_graphs + graph) * num_rows + row + d * step)[:, None] * NUM_VALUES + value[None, :]
    mask = (row >= 0)[:, None] & (value < NUM_VALUES)[None, :]
    to_sin, to_b = (NUM_D * step)[:, None] * NUM_VALUES, step[:, None] * NUM_VALUES
    tl.store(out + place, whole(cos_a, PRECISION), mask=mask)
    tl.store(out + place + to_sin, whole(sin_a, PRECISION), mask=mask)
    mask = (row >= tl.where(d + 1 < NUM_D, 0, num_rows))[:, None] & (value < NUM_VALUES)[None, :]
    tl.store(out + place + to_b, whole(cos_b, PRECISION), mask=mask)
    tl.store(out + place + to_b + to_sin, whole(sin_b, PRECISION), mask=mask)


@part
def of_both(x, place, to_b):
    """x (n, 1) of two d, loaded together: the compiler would have every thread load one of them alone for all its atoms."""
    first, second = tl.split(tl.load(x + place[:, None] + (tl.arange(0, 2) * to_b)[None, :]))
    return first[:, None], second[:, None]


@triton.jit(do_not_specialize=["num_blocks"])
def read_out(
    x, t, r, k, dx, dt, dr, dk, weights, channels, graphs, out,
    num_atoms, num_phases, num_channels, num_blocks, size,
    NUM_D: tl.constexpr, NUM_COMPONENTS: tl.constexpr, NUM_VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    TURNED: tl.constexpr, PRECISION: tl.constexpr, NATIVE: tl.constexpr, ATOMS: tl.constexpr, PHASES: tl.constexpr,
    VALUES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """out (splits, B, A, n, V) = Σ_m Y_m Σ features_n T; along a direction, changed features T + E x dT.

    One program: a tile of atoms of a block, a component and a tile of values; the phases are shared between `splits` programs.

    Args:
        t, dt: (parts, G, V', 2 D' Φ'), arranged and transposed, D' = NUM_D or one more; size: that of a part.
        k, dk: (3, Φ'); weights: (A, Φ'); channels: of each TILE of phases.
        graphs: (B,) graph of each block.
    """
    HAS_TURN: tl.constexpr = dr is not None or dk is not None
    HAS_CHANGE: tl.constexpr = dx is not None
    EVEN_D: tl.constexpr = (NUM_D + 1) // 2 * 2
    in_block = tl.cdiv(num_atoms, ATOMS)
    block = (tl.program_id(0) // in_block).to(tl.int64)
    item = tl.program_id(0) % in_block * ATOMS + tl.arange(0, ATOMS)
    atom = tl.minimum(item, num_atoms - 1)
    place_r = (block * 3 * num_atoms + atom)[:, None]
    r0, r1, r2 = vectors(r, place_r, num_atoms)
    d0, d1, d2 = r0, r1, r2
    if dr is not None:
        d0, d1, d2 = vectors(dr, place_r, num_atoms)
    component = tl.program_id(1) // (PADDED_VALUES // VALUES)
    value = tl.program_id(1) % (PADDED_VALUES // VALUES) * VALUES + tl.arange(0, VALUES)
    split, splits = tl.program_id(2), tl.num_programs(2)
    num_items = 2 * EVEN_D * num_phases
    of_values = (tl.load(graphs + block).to(tl.int64) * PADDED_VALUES + value)[:, None] * num_items

    total = tl.zeros([ATOMS, VALUES], tl.float32)
    for d in range(0, NUM_D, 2):
        of_x = (block * NUM_D + d) * num_channels * num_atoms + atom
        to_b = tl.minimum(1, NUM_D - 1 - d) * num_channels * num_atoms
        for tile in range(split, num_phases // PHASES, splits):
            number = tile * PHASES + tl.arange(0, PHASES)
            channel = tl.load(channels + tile * PHASES // TILE)
            k0, k1, k2 = vectors(k, number[None, :], num_phases)
            cos, sin = cos_sin(dot3(r0, r1, r2, k0, k1, k2), TURNED, PRECISION)
            turn = cos
            if HAS_TURN:
                dk0, dk1, dk2 = k0, k1, k2
                if dk is not None:
                    dk0, dk1, dk2 = vectors(dk, number[None, :], num_phases)
                turn = turned_by(k0, k1, k2, r0, r1, r2, dk0, dk1, dk2, d0, d1, d2, dr is not None, dk is not None)
            if weights is not None:
                factor = tl.load(weights + component * num_phases + number)[None, :]
                cos, sin = cos * factor, sin * factor
            place_x = of_x + channel * num_atoms
            x_a, x_b = of_both(x, place_x, to_b)
            dx_a, dx_b = x_a, x_b
            if HAS_CHANGE:
                dx_a, dx_b = of_both(dx, place_x, to_b)
            place = of_values + (d * num_phases + number)[None, :]
            to_sin = EVEN_D * num_phases
            here = total
            if PRECISION == "tf32x3":  # added up where nothing is cut off
                here = tl.zeros_like(total)
            if t is not None:
                fc, fs = changed(cos, sin, x_a, turn, dx_a, HAS_TURN, HAS_CHANGE)
                here = add_product(fc, t, place, size, here, PRECISION, NATIVE)
                here = add_product(fs, t, place + to_sin, size, here, PRECISION, NATIVE)
                fc, fs = changed(cos, sin, x_b, turn, dx_b, HAS_TURN, HAS_CHANGE)
                here = add_product(fc, t, place + num_phases, size, here, PRECISION, NATIVE)
                here = add_product(fs, t, place + num_phases + to_sin, size, here, PRECISION, NATIVE)
            if dt is not None:
                here = add_product(cos * x_a, dt, place, size, here, PRECISION, NATIVE)
                here = add_product(sin * x_a, dt, place + to_sin, size, here, PRECISION, NATIVE)
                here = add_product(cos * x_b, dt, place + num_phases, size, here, PRECISION, NATIVE)
                here = add_product(sin * x_b, dt, place + num_phases + to_sin, size, here, PRECISION, NATIVE)
            if PRECISION == "tf32x3":
                total += here
            else:
                total = here
    place = ((split * num_blocks + block) * NUM_COMPONENTS + component) * num_atoms + item
    mask = (item < num_atoms)[:, None] & (value < NUM_VALUES)[None, :]
    tl.store(out + place[:, None] * NUM_VALUES + value[None, :], whole(total, PRECISION), mask=mask)


@part
def products(
    y, t, first_y, num_items, item, place_t, size_y, size_t, weights, number, num_phases, total,
    NUM_COMPONENTS: tl.constexpr, PADDED_VALUES: tl.constexpr, PRECISION: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """total + U, U = T·(Y_m·y), (n, 2 m): the rows of cos and then those of sin, so that a product has many columns."""
    for component in range(NUM_COMPONENTS):
        both = total
        if weights is not None:
            both = tl.zeros_like(total)
        place_y = ((first_y + component) * num_items + item)[:, None] * PADDED_VALUES + tl.arange(0, VALUES)[None, :]
        for start in range(0, PADDED_VALUES, VALUES):
            a, b = tl.load(y + place_y + start), tl.trans(tl.load(t + place_t + start))
            a_rest, b_rest = a, b
            if PRECISION == "tf32x3":
                a_rest, b_rest = tl.load(y + size_y + place_y + start), tl.trans(tl.load(t + size_t + place_t + start))
            both = multiply_add(a, a_rest, b, b_rest, both, PRECISION)
        if weights is not None:
            total += both * tl.load(weights + component * num_phases + number)[None, :]
        else:
            total = both
    return total


@part
def halves(u, ATOMS: tl.constexpr, PHASES: tl.constexpr):
    """(n, 2 m) -> two of (n, m)."""
    return tl.split(tl.permute(tl.reshape(u, ATOMS, 2, PHASES), 0, 2, 1))


@triton.jit(do_not_specialize=["num_blocks"])
def pull(
    x, y, t, r, k, dx, dy, dt, dr, dk, u, weights, runs, graphs, by_x, by_r, by_frequencies,
    num_atoms, num_items, num_phases, num_channels, num_blocks, size_y, size_t, SECOND: tl.constexpr,
    NUM_D: tl.constexpr, NUM_COMPONENTS: tl.constexpr, PADDED_VALUES: tl.constexpr, TURNED: tl.constexpr,
    PRECISION: tl.constexpr, NATIVE: tl.constexpr, ATOMS: tl.constexpr, PHASES: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    """Derivatives by x (B, d, C, n), r (splits, B, 3, n) and ω (programs, C), or theirs along a direction (SECOND).

    With U = T·(Y_m·y): cos φ U^cos + sin φ U^sin is the derivative by x, summed over directions, and its own by φ,
    cos φ U^sin - sin φ U^cos times x, how Ψ changes with the phase. One program: a tile of atoms of a block, and its share of
    the channels. Each of by_x, by_r and by_frequencies may be None.

    Args:
        y, dy: (parts, B A, n', V'), arranged; num_items, size_y: n' and that of a part.
        t, dt: (parts, G, 2 D' Φ', V'), arranged, D' = NUM_D or one more; size_t: that of a part.
        k, dk, u: (3, Φ'), u for by_frequencies only; weights: (A, Φ').
        runs: (2, C) first tile of each channel, and how many it has.
    """
    HAS_TURN: tl.constexpr = dr is not None or dk is not None
    ALONG: tl.constexpr = SECOND and (HAS_TURN or dx is not None) and y is not None and t is not None
    OF_PHASE: tl.constexpr = by_r is not None or by_frequencies is not None
    EVEN_D: tl.constexpr = (NUM_D + 1) // 2 * 2
    in_block = tl.cdiv(num_atoms, ATOMS)
    program = tl.program_id(0)
    block = (program // in_block).to(tl.int64)
    item = program % in_block * ATOMS + tl.arange(0, ATOMS)
    mask_n = item < num_atoms
    atom = tl.minimum(item, num_atoms - 1)
    column = tl.arange(0, VALUES)
    place_r = block * 3 * num_atoms + atom
    first_y = block * NUM_COMPONENTS
    r0, r1, r2 = vectors(r, place_r[:, None], num_atoms)
    d0, d1, d2 = r0, r1, r2
    if dr is not None:
        d0, d1, d2 = vectors(dr, place_r[:, None], num_atoms)
    split, splits = tl.program_id(1), tl.num_programs(1)
    first_item = tl.load(graphs + block).to(tl.int64) * 2 * EVEN_D * num_phases
    twice = tl.arange(0, 2 * PHASES) % PHASES
    row_twice = twice + tl.arange(0, 2 * PHASES) // PHASES * (EVEN_D * num_phases)

    out0 = tl.zeros([ATOMS], tl.float32)
    out1 = tl.zeros([ATOMS], tl.float32)
    out2 = tl.zeros([ATOMS], tl.float32)
    for channel in range(split, num_channels, splits):
        first_tile, count = tl.load(runs + channel), tl.load(runs + num_channels + channel)
        w = 0.0
        for d in range(0, NUM_D, 2):
            sum_a = tl.zeros([ATOMS], tl.float32)
            sum_b = tl.zeros([ATOMS], tl.float32)
            place_x = ((block * NUM_D + d) * num_channels + channel) * num_atoms + atom
            for tile in range(first_tile, first_tile + count):
                number = tile * PHASES + tl.arange(0, PHASES)
                k0, k1, k2 = vectors(k, number[None, :], num_phases)
                slopes = tl.zeros([ATOMS, PHASES], tl.float32)
                own = tl.zeros([ATOMS, PHASES], tl.float32)
                for other in tl.static_range(2):
                    place = place_x + tl.minimum(other, NUM_D - 1 - d) * num_channels * num_atoms
                    here = tl.load(x + place)[:, None]
                    row = first_item + (d + other) * num_phases + tile * PHASES + row_twice
                    place_t = row[:, None] * PADDED_VALUES + column[None, :]
                    added = tl.zeros([ATOMS], tl.float32)
                    both = tl.zeros([ATOMS, 2 * PHASES], tl.float32)
                    if ALONG or not SECOND:
                        both = products(
                            y, t, first_y, num_items, item, place_t, size_y, size_t, weights, tile * PHASES + twice, num_phases,
                            both, NUM_COMPONENTS, PADDED_VALUES, PRECISION, VALUES,
                        )  # fmt: skip
                    u_cos, u_sin = halves(both, ATOMS, PHASES)
                    if other == 0:
                        # after a product, and of one sum with it: so they are made in its layout, and need not be moved to it
                        cos, sin = cos_sin(dot3(r0, r1, r2, k0, k1, k2) + 0.0 * u_cos, TURNED, PRECISION)
                        turn = cos
                        if HAS_TURN:
                            dk0, dk1, dk2 = k0, k1, k2
                            if dk is not None:
                                dk0, dk1, dk2 = vectors(dk, number[None, :], num_phases)
                            turn = turned_by(k0, k1, k2, r0, r1, r2, dk0, dk1, dk2, d0, d1, d2, dr is not None, dk is not None)
                    if ALONG:
                        real, imag = cos * u_cos + sin * u_sin, cos * u_sin - sin * u_cos
                        if dx is not None:
                            slopes += imag * tl.load(dx + place)[:, None]
                        if HAS_TURN:
                            added += tl.sum(imag * turn, 1)
                            slopes -= real * here * turn
                            own += imag * here
                        both = tl.zeros([ATOMS, 2 * PHASES], tl.float32)
                    if SECOND:
                        if dy is not None and t is not None:
                            both = products(
                                dy, t, first_y, num_items, item, place_t, size_y, size_t, weights, tile * PHASES + twice,
                                num_phases, both, NUM_COMPONENTS, PADDED_VALUES, PRECISION, VALUES,
                            )  # fmt: skip
                        if dt is not None and y is not None:
                            both = products(
                                y, dt, first_y, num_items, item, place_t, size_y, size_t, weights, tile * PHASES + twice,
                                num_phases, both, NUM_COMPONENTS, PADDED_VALUES, PRECISION, VALUES,
                            )  # fmt: skip
                        u_cos, u_sin = halves(both, ATOMS, PHASES)
                    if by_x is not None:
                        added += tl.sum(cos * u_cos + sin * u_sin, 1)
                        if other == 0:
                            sum_a += added
                        else:
                            sum_b += added
                    if OF_PHASE:
                        slopes += (cos * u_sin - sin * u_cos) * here
                if by_r is not None:
                    out0 += tl.sum(slopes * k0, 1)
                    out1 += tl.sum(slopes * k1, 1)
                    out2 += tl.sum(slopes * k2, 1)
                    if SECOND and dk is not None:
                        out0 += tl.sum(own * dk0, 1)
                        out1 += tl.sum(own * dk1, 1)
                        out2 += tl.sum(own * dk2, 1)
                if by_frequencies is not None:
                    u0, u1, u2 = vectors(u, number[None, :], num_phases)
                    moved = slopes * dot3(r0, r1, r2, u0, u1, u2)
                    if SECOND and dr is not None:
                        moved += own * dot3(d0, d1, d2, u0, u1, u2)
                    w += tl.sum(moved)
            if by_x is not None:
                tl.store(by_x + place_x, sum_a, mask=mask_n)
                tl.store(by_x + place_x + num_channels * num_atoms, sum_b, mask=mask_n & (d + 1 < NUM_D))
        if by_frequencies is not None:
            tl.store(by_frequencies + program.to(tl.int64) * num_channels + channel, w)
    if by_r is not None:
        place = split.to(tl.int64) * num_blocks * 3 * num_atoms + place_r
        tl.store(by_r + place, out0, mask=mask_n)
        tl.store(by_r + place + num_atoms, out1, mask=mask_n)
        tl.store(by_r + place + 2 * num_atoms, out2, mask=mask_n)
