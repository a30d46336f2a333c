"""The JAX reference (thorben-frank/euclidean_fast_attention, installed by `tox -e bench`): compiled ahead, and waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from euclidean_fast_attention.fast_attention import EuclideanFastAttention

from benchmarks.problems import Arrays, Problem


def _parameters(weights: list[Any], degree: int) -> dict[str, Any]:
    """Kernels (degree + 1, F_in, F_out) and biases of q, k, v by the reference's names."""
    named = {}
    for i in range(3):
        kernel, bias = weights[2 * i : 2 * i + 2]
        irreps = {f"{d}{'-' if d % 2 else '+'}": {"kernel": kernel[d]} for d in range(degree + 1)}
        irreps["0+"]["bias"] = bias
        named[f"Dense_{i}"] = irreps
    return {"params": named}


@dataclass(frozen=True)
class JaxTask:
    """A compiled function with its arguments; a call returns when the result is there."""

    compiled: Any
    arguments: tuple[Any, ...]

    def __call__(self) -> list[Any]:
        return jax.tree.leaves(jax.block_until_ready(self.compiled(*self.arguments)))

    @property
    def mib(self) -> float | None:
        """Of results and all between them, as the compiler laid it out; none where it does not say."""
        found = self.compiled.memory_analysis()
        return None if found is None else (found.temp_size_in_bytes + found.output_size_in_bytes) / 2**20


def jax_task(problem: Problem, data: Arrays, task: str) -> JaxTask:
    module = EuclideanFastAttention(
        lebedev_num=problem.points,
        num_features_qk=problem.width_qk,
        num_features_v=problem.width_v,
        epe_max_frequency=problem.max_frequency,
        epe_max_length=data.max_length,
    )

    def forward(weights: list[Any], positions: Any, inputs: Any, batch: Any, mask: Any, cotangent: Any) -> Any:
        return module.apply(_parameters(weights, problem.degree), inputs, positions, batch, mask)

    def energy(weights: list[Any], positions: Any, *rest: Any) -> Any:
        out = forward(weights, positions, *rest)
        return (out * rest[-1]).sum(), out

    def forces(weights: list[Any], positions: Any, *rest: Any) -> Any:
        (_, out), gradient = jax.value_and_grad(energy, argnums=1, has_aux=True)(weights, positions, *rest)
        return out, gradient

    def loss(weights: list[Any], positions: Any, *rest: Any) -> Any:
        (value, _), gradient = jax.value_and_grad(energy, argnums=1, has_aux=True)(weights, positions, *rest)
        return value**2 + (gradient**2).sum()

    def training(*args: Any) -> Any:
        return jnp.concatenate([w.ravel() for w in jax.grad(loss)(*args)])

    mask = jnp.ones(problem.num_graphs, dtype=bool)
    weights = [jnp.asarray(w) for w in data.weights]
    rest = [jnp.asarray(a) for a in (data.positions, data.inputs, data.batch.astype("int32"))]
    arguments = (weights, *rest, mask, jnp.asarray(data.cotangent))
    function = {"forward": forward, "forces": forces, "training": training}[task]
    return JaxTask(jax.jit(function).lower(*arguments).compile(), arguments)
