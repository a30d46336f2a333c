"""Errors of the kernels in each precision: `TRITON_INTERPRET=1 python -m benchmarks.gpu_errors` runs them on a CPU.

Relative errors, in the norm over all elements, of the attention of a droplet, of E = Σ output² by the positions, and of a loss
of forces by q, against torch's operations in float64. Products are rounded as on a GPU (`ops.triton_kernels`): TF32 and bf16
by their bits, sums in float32. Torch's float32 operations stand beside them.
"""

from __future__ import annotations

import os

import torch

from benchmarks.attention_methods import structures
from efa_addons.ops.backends import PRECISION, PRECISIONS, backend
from efa_addons.ops.graphs import graph_blocks
from efa_addons.ops.grid import frequency_groups, make_grid
from efa_addons.ops.quadrature import attend

ATOMS, WIDTH = 128, 16
PHASES = torch.linspace(0, 4 * torch.pi, WIDTH // 2)


def values(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    positions, batch = structures(ATOMS, 1)
    q, k, v = (torch.randn(ATOMS, 1, WIDTH) for _ in range(3))
    frequencies = PHASES / (2 * positions.norm(dim=1).max())
    q, k, v, positions, frequencies = (part.to(dtype) for part in (q, k, v, positions, frequencies))
    torch.set_default_dtype(dtype)
    grid = make_grid(frequency_groups(PHASES.tolist(), 1e-5, 0), [1.0])
    q.requires_grad_(), positions.requires_grad_()
    with backend(name):
        out = attend(q, k, v, positions, frequencies, grid, graph_blocks(batch, 1))
        (forces,) = torch.autograd.grad(out.square().sum(), positions, create_graph=True)
        (weights,) = torch.autograd.grad(forces.square().sum(), q)
    return [part.detach().double() for part in (out, forces, weights)]


def main() -> None:
    exact = values("plain", torch.float64)
    print("| products | output | forces | second derivative |\n|---|---|---|---|")
    for name, precision in [("plain", "torch, float32"), *(("triton", precision) for precision in PRECISIONS)]:
        os.environ[PRECISION] = precision if name == "triton" else ""
        errors = [(a - b).norm() / b.norm() for a, b in zip(values(name, torch.float32), exact, strict=True)]
        print(f"| {precision} | " + " | ".join(f"{error:.1e}" for error in errors) + " |", flush=True)


if __name__ == "__main__":
    main()
