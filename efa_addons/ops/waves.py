"""The sums of the quadrature and their derivatives, by torch part by part (`ops.parts`) or by kernels (`ops.triton_waves`).

A wave is a direction u_m with a frequency ω_c, and φ = ω_c u_m·r its phase at an atom. Everything comes from one form,

    Ψ(x, y, r, ω, T) = Σ_n Σ_mc Σ_d Σ_v [cos φ_nmc T_mcdv^cos + sin φ_nmc T_mcdv^sin] x_ncd (Y_m·y_n)_v,

x the features that rotate with channel c, d numbering the firsts of its pairs and then the seconds. Its derivative by T is the
state of the atoms, that by y is what they read out of a state T, and those by x, r and ω belong to their backward pass. Ψ is
linear in x, y and T, and turning every phase by 90 degrees differentiates it by φ: so it takes only matrix products with the
same features to go on to second derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efa_addons.dtype import without_autocast
from efa_addons.errors import EFAError
from efa_addons.ops import parts
from efa_addons.ops.backends import Kind, giving_up, kernels
from efa_addons.ops.parts import NONE, Partials, Waves


@without_autocast
def partials(
    x: Tensor, y: Tensor | None, r: Tensor, frequencies: Tensor, state: Tensor | None, waves: Waves, needed: Sequence[bool]
) -> Partials:
    """Derivatives of Ψ by x, y, r, ω and T, those that are needed, by the back end that serves.

    Args:
        x: (B, d, C, n); y: (B, A, n, V); r: (B, 3, n) in Å; frequencies: (C,) in 1/Å; state: T, (G, R, V). y may be
            missing where only its derivative is needed, state likewise.
    """
    kind = Kind(x.device, x.dtype, second=False, mixed=waves.weights is not None)
    faster = kernels(kind, x.shape[2] * x.shape[3])
    if faster is not None:
        with giving_up(kind):
            return faster.partials(x, y, r, frequencies, state, waves, needed)
    return parts.partials(x, y, r, frequencies, state, waves, needed)


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
    """Derivatives by x, y, r, ω and T, those that are needed, of the derivative of Ψ along a direction in (x, y, r, ω, T).

    Args:
        along: the direction, of the shapes of the arguments; none for zero.
        others: as in `partials`.
    """
    kind = Kind(x.device, x.dtype, second=True, mixed=waves.weights is not None)
    faster = kernels(kind, x.shape[2] * x.shape[3])
    if faster is not None:
        with giving_up(kind):
            return faster.second_partials(x, y, r, frequencies, state, waves, along, needed)
    return parts.second_partials(x, y, r, frequencies, state, waves, along, needed)


class State(torch.autograd.Function):
    """dΨ/dT, (G, R, V): what the atoms of each graph put into every wave."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, r: Tensor, frequencies: Tensor, waves: Waves) -> Tensor:
        ctx.save_for_backward(x, y, r, frequencies)
        ctx.waves = waves
        state = partials(x, y, r, frequencies, None, waves, [False, False, False, False, True])[4]
        assert state is not None
        return state

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y, r, frequencies = ctx.saved_tensors
        needed = [*ctx.needs_input_grad[:4], False]
        by_x, by_y, by_r, by_frequencies, _ = _First.apply(x, y, r, frequencies, grad, ctx.waves, needed)
        return by_x, by_y, by_r, by_frequencies, None


class ReadOut(torch.autograd.Function):
    """dΨ/dy, (B, A, n, V): what each atom reads out of a state."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, state: Tensor, r: Tensor, frequencies: Tensor, waves: Waves) -> Tensor:
        ctx.save_for_backward(x, state, r, frequencies)
        ctx.waves = waves
        values = partials(x, None, r, frequencies, state, waves, [False, True, False, False, False])[1]
        assert values is not None
        return values

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, state, r, frequencies = ctx.saved_tensors
        of_x, of_state, of_r, of_frequencies = ctx.needs_input_grad[:4]
        needed = [of_x, False, of_r, of_frequencies, of_state]
        by_x, _, by_r, by_frequencies, by_state = _First.apply(x, grad, r, frequencies, state, ctx.waves, needed)
        return by_x, by_state, by_r, by_frequencies, None


class _First(torch.autograd.Function):
    """`partials` with both y and T given."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, r: Tensor, frequencies: Tensor, state: Tensor, waves: Waves, needed: Sequence[bool]
    ) -> Partials:
        ctx.save_for_backward(x, y, r, frequencies, state)
        ctx.waves = waves
        ctx.set_materialize_grads(False)
        return partials(x, y, r, frequencies, state, waves, needed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (*NONE, None, None)
        return *_Second.apply(*ctx.saved_tensors, ctx.waves, ctx.needs_input_grad[:5], *grads), None, None


class _Second(torch.autograd.Function):
    """`second_partials`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        r: Tensor,
        frequencies: Tensor,
        state: Tensor,
        waves: Waves,
        needed: Sequence[bool],
        *along: Any,
    ) -> Partials:
        return second_partials(x, y, r, frequencies, state, waves, along, needed)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        raise EFAError(
            "third derivatives of the attention are asked for, and this form has the first two: start "
            "Python with EFA_ADDONS_BACKEND=plain, or compute `with efa_addons.ops.backends.backend('plain'):`, which has "
            "all of them and takes more memory."
        )
