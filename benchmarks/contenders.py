"""The contenders of `benchmarks.efa`: ours, a straightforward translation to torch, and the JAX reference.

Each task is a function without arguments that returns arrays: "forward" the output, "forces" output and gradient of
E = Σ c·output by the positions, "training" the gradient of E² + |∂E/∂r|² by all weights, in one vector.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.problems import TOLERANCE, Arrays, Problem, arrays
from efa_addons import EuclideanFastAttention
from efa_addons.ops.lebedev import lebedev_grid

REFERENCE, TRANSLATION, AUTO, QUADRATURE = "JAX reference", "torch translation", "efa_addons", "efa_addons, quadrature"
CONTENDERS = (REFERENCE, TRANSLATION, AUTO, QUADRATURE)
Task = Callable[[], list[Any]]


def missing(contender: str) -> str:
    """Why it cannot take part, or nothing."""
    if contender == REFERENCE and any(importlib.util.find_spec(name) is None for name in ("jax", "euclidean_fast_attention")):
        return "not installed"
    return ""


def build(contender: str, problem: Problem, task: str, device: torch.device | str = "cpu") -> Task:
    """The task, compiled where the contender compiles. The device is for those that torch runs; jax has its own."""
    data = arrays(problem)
    if contender == REFERENCE:
        from benchmarks.reference import jax_task

        return jax_task(problem, data, task)
    if contender == TRANSLATION:
        weights = [torch.from_numpy(w).to(device).requires_grad_(task == "training") for w in data.weights]
        return _torch_task(_translation(problem, data, weights, device), weights, data, task, device)
    module = _ours(problem, data, "auto" if contender == AUTO else "quadrature").requires_grad_(task == "training").to(device)
    weights = [w for dense in (module.q, module.k, module.v) for w in (dense.weight, dense.bias)]
    inputs, batch = (torch.from_numpy(part).to(device) for part in (data.inputs, data.batch))
    return _torch_task(lambda r: module(inputs, r, batch, problem.num_graphs), weights, data, task, device)


def _ours(problem: Problem, data: Arrays, method: str) -> EuclideanFastAttention:
    module = EuclideanFastAttention(
        problem.width_v, problem.degree, max_length=data.max_length, max_frequency=problem.max_frequency, method=method,
        tolerance=TOLERANCE, num_features_qk=problem.width_qk,
    )  # fmt: skip
    with torch.no_grad():
        for i, dense in enumerate((module.q, module.k, module.v)):
            dense.weight.copy_(torch.from_numpy(data.weights[2 * i]))
            dense.bias.copy_(torch.from_numpy(data.weights[2 * i + 1]))
    return module


def _translation(
    problem: Problem, data: Arrays, weights: list[Tensor], device: torch.device | str
) -> Callable[[Tensor], Tensor]:
    """The equations as they stand. Batches, as in the reference, by the outer products k ⊗ v of every atom, N M D_qk D_v."""
    inputs, batch = torch.from_numpy(data.inputs).squeeze(1).to(device), torch.from_numpy(data.batch).to(device)
    directions, measure = (torch.as_tensor(part, dtype=torch.float32, device=device) for part in lebedev_grid(problem.points))
    frequencies = torch.linspace(0, problem.max_frequency, problem.width_qk // 2, device=device) / data.max_length
    degree_of = torch.tensor([degree for degree in range(problem.degree + 1) for _ in range(2 * degree + 1)])

    def dense(kernel: Tensor, bias: Tensor) -> Tensor:
        y = torch.einsum("nkf,kfg->nkg", inputs, kernel[degree_of])
        return torch.cat([y[:, :1] + bias, y[:, 1:]], dim=1)

    def rotate(x: Tensor, angle: Tensor) -> Tensor:
        even, odd = x[:, None, :, 0::2], x[:, None, :, 1::2]
        cos, sin = angle.cos()[:, :, None], angle.sin()[:, :, None]
        return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(2)  # (N, M, D_qk)

    def call(positions: Tensor) -> Tensor:
        q, k, v = (dense(*weights[i : i + 2]) for i in (0, 2, 4))
        angle = (positions @ directions.T)[:, :, None] * frequencies
        q, k, v = rotate(q, angle) * problem.dims[0] ** -0.5, rotate(k, angle), v.flatten(1)
        q = q * measure[:, None]
        if problem.num_graphs == 1:
            out = torch.einsum("nmd,mdv->nv", q, torch.einsum("nmd,nv->mdv", k, v))
        else:
            outer = torch.einsum("nmd,nv->nmdv", k, v)
            state = outer.new_zeros([problem.num_graphs, *outer.shape[1:]]).index_add(0, batch, outer)
            out = torch.einsum("nmd,nmdv->nv", q, state[batch])
        return out.view(data.cotangent.shape)

    return call


def _torch_task(
    call: Callable[[Tensor], Tensor], weights: list[Tensor], data: Arrays, task: str, device: torch.device | str
) -> Task:
    positions, cotangent = (torch.from_numpy(part).to(device) for part in (data.positions, data.cotangent))

    def forward() -> list[Tensor]:
        with torch.no_grad():
            return [call(positions)]

    def gradients() -> list[Tensor]:
        r = positions.clone().requires_grad_()
        out = call(r)
        energy = (out * cotangent).sum()
        (gradient,) = torch.autograd.grad(energy, [r], create_graph=task == "training")
        if task == "forces":
            return [out.detach(), gradient]
        loss = energy.square() + gradient.square().sum()
        return [torch.cat([w.flatten() for w in torch.autograd.grad(loss, weights)])]

    return forward if task == "forward" else gradients
