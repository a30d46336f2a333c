"""Which form of the attention is cheaper for a graph of n atoms: the quadrature, linear in n, or the sum over pairs."""

from __future__ import annotations


def pairwise_up_to(num_waves: int, num_rows: int, width_v: int, num_frequencies: int, max_degree_sph: int) -> int:
    """The number of atoms up to which the sum over pairs is cheaper.

    A training step (with forces) of a graph of n atoms takes about, in microseconds of one core in single precision,

        quadrature  n (1.1 W + 0.0006 R D_v),    twice that with tensor integration (harmonics of odd degree are read apart)
        pairs       n² [C (0.065 + 0.03 L_Y) + 0.03 (A - 1) + 0.0006 A D_v],    A = (L_Y + 1)²

    fitted to `python -m benchmarks.attention_methods`, which shows both next to the choice. Only the ratio matters.

    Args:
        num_waves: W, directions times frequencies, summed over groups of frequencies.
        num_rows: R, rows of the state: waves times cos and sin times the features of q that rotate with each.
        width_v: D_v, components times features.
        num_frequencies: C.
        max_degree_sph: L_Y, 0 without tensor integration.
    """
    components = (max_degree_sph + 1) ** 2
    per_atom = (1.1 * num_waves + 0.0006 * num_rows * width_v) * (2 if max_degree_sph > 0 else 1)
    per_pair = num_frequencies * (0.065 + 0.03 * max_degree_sph) + 0.03 * (components - 1) + 0.0006 * components * width_v
    return max(1, int(per_atom / per_pair))
