"""Which form of the attention is cheaper for a graph of n atoms: the quadrature, linear in n, or the sum over pairs."""

from __future__ import annotations


def pairwise_up_to(num_rows: int, width_v: int, num_frequencies: int, max_degree_sph: int) -> int:
    """The number of atoms up to which the sum over pairs is cheaper.

    A training step (with forces) of a graph of n atoms takes about, in microseconds of one core in single precision,

        quadrature  n R (0.18 + 0.0007 D_v)
        pairs       n² [C (0.075 + 0.02 L_Y) + 0.06 (A - 1) + 0.0006 A D_v],    A = (L_Y + 1)²

    fitted to `python -m benchmarks.attention_methods`, which shows both next to the choice. Only the ratio matters.

    Args:
        num_rows: R, rows of the state: directions times features of q that rotate with them, summed over groups of frequencies.
        width_v: D_v, components times features.
        num_frequencies: C.
        max_degree_sph: L_Y, 0 without tensor integration.
    """
    components = (max_degree_sph + 1) ** 2
    per_atom = num_rows * (0.18 + 0.0007 * width_v)
    per_pair = num_frequencies * (0.075 + 0.02 * max_degree_sph) + 0.06 * (components - 1) + 0.0006 * components * width_v
    return max(1, int(per_atom / per_pair))
