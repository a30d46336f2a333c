"""Quadrature against the sum over pairs: `python -m benchmarks.attention_methods` times both and says which one auto takes.

A training step is the attention, forces of it, and the gradient of a loss of both by all parameters. Figures are process times
of one thread, the least over alternating repetitions, divided by the number of graphs. Gate: both must give the same values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.common import least, options, show
from efa_addons import EuclideanFastAttention

# Widths of q and k and of v, degree of q and k, highest degree of Y (tensor integration); the layer has degree 0 and 1.
SETTINGS = [(16, 16, 0, None), (16, 16, 1, None), (32, 64, 0, None), (16, 16, 0, 1), (16, 16, 0, 2)]
SIZES = [5, 10, 20, 40, 80, 160, 320]
ATOMS = 320  # in a batch of small graphs
SPACING = 1.6  # Å


def modules(
    width_qk: int, width_v: int, degree_qk: int, degree_sph: int | None, max_length: float
) -> dict[str, torch.nn.Module]:
    """The attention by each method, of equal weights."""
    coupled = {"tensor_integration": True, "ti_max_degree_sph": degree_sph, "ti_max_degree": 1} if degree_sph else {}
    made: dict[str, torch.nn.Module] = {}
    for method in ("quadrature", "pairwise", "auto"):
        module = EuclideanFastAttention(
            32, 1, max_length=max_length, method=method, num_features_qk=width_qk, num_features_v=width_v,
            max_degree_qk=degree_qk, **coupled,
        )  # fmt: skip
        module.load_state_dict(next(iter(made.values()), module).state_dict())
        made[method] = module
    return made


def structures(num_atoms: int, num_graphs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Droplets of `num_atoms` atoms: positions (N, 3) and batch (N,)."""
    direction = torch.nn.functional.normalize(torch.randn(num_graphs * num_atoms, 3), dim=1)
    radius = SPACING * (0.75 / torch.pi * num_atoms) ** (1 / 3)
    return radius * torch.rand(len(direction), 1) ** (1 / 3) * direction, torch.arange(num_graphs).repeat_interleave(num_atoms)


def training_step(module: torch.nn.Module, positions: torch.Tensor, batch: torch.Tensor, num_graphs: int) -> Callable[[], None]:
    x = torch.randn(len(batch), 1, 4, 32)

    def run() -> None:
        features, points = x.clone().requires_grad_(), positions.clone().requires_grad_()
        energy = module(features, points, batch, num_graphs).square().sum()
        forces = torch.autograd.grad(energy, [features, points], create_graph=True)
        (energy + sum(force.square().sum() for force in forces)).backward()

    return run


def main() -> None:
    args = options(__doc__, repeats=8).parse_args()
    rows = []
    for width_qk, width_v, degree_qk, degree_sph in SETTINGS[::3] if args.quick else SETTINGS:
        for num_atoms in [2, 5] if args.quick else SIZES:
            num_graphs = max(1, (10 if args.quick else ATOMS) // num_atoms)
            positions, batch = structures(num_atoms, num_graphs)
            length = 1.2 * float(torch.pdist(positions[:num_atoms]).max())
            made = modules(width_qk, width_v, degree_qk, degree_sph, length)
            x = torch.randn(len(batch), 1, 4, 32)
            grid, pairs = (made[name](x, positions, batch, num_graphs) for name in ("quadrature", "pairwise"))
            if not torch.allclose(grid, pairs, rtol=1e-3, atol=1e-4 * float(grid.abs().max())):
                raise SystemExit(f"gate: the methods differ by {(grid - pairs).abs().max():.1e} of {grid.abs().max():.1e}")
            steps = [training_step(made[name], positions, batch, num_graphs) for name in ("quadrature", "pairwise")]
            times = [1000 * t / num_graphs for t in least(steps, 1 if args.quick else args.repeats)]
            widths = [str(width_qk * (degree_qk + 1) ** 2), str(4 * width_v), str(degree_sph or 0)]
            choice = "pairwise" if num_atoms <= made["auto"].pairwise_up_to else "quadrature"
            rows.append(
                [*widths, made["quadrature"].describe_grid().removesuffix(" Lebedev points"), f"{num_graphs} x {num_atoms}"]
                + [f"{t:.2f}" for t in times]
                + [f"{times[0] / times[1]:.2f}", f"{choice} (up to {made['auto'].pairwise_up_to})"]
            )
    head = ["D_qk", "D_v", "degree of Y", "points", "atoms", "quadrature (ms)", "pairwise (ms)", "ratio", "auto takes"]
    show("attention_methods", "training step of one graph, float32, one thread", head, rows, args)


if __name__ == "__main__":
    main()
