"""The sums of `ops.waves` as operators of torch.library: what torch.compile, export and AOTInductor take as a node.

torch.ops.efa_addons.wave_state and wave_read_out are differentiable twice; wave_first and wave_second are these derivatives.
In a trace the quadrature is made of torch's own operations, which every runtime has, unless EFA_ADDONS_BACKEND=chunked asks for
these nodes: they keep the memory of a part, and whoever runs the trace must have imported efa_addons.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from efa_addons.ops.parts import Waves, num_rows
from efa_addons.ops.waves import partials, second_partials

_WAVES = (
    "Tensor directions, Tensor? weights, int[] group_directions, int[] group_channels, Tensor graph, SymInt num_graphs, "
    "bool one_each, bool turned"
)
_NUM_WAVES = len(Waves._fields)
_ATOMS = "Tensor r, Tensor frequencies"
_FIVE = "(Tensor, Tensor, Tensor, Tensor, Tensor)"


def _filled(found: Sequence[Tensor | None], like: Tensor) -> tuple[Tensor, ...]:
    """An operator returns tensors: empty ones for what was not asked for. All are contiguous, whatever back end made them from
    whatever arguments: compiled code relies on the strides that it was told."""
    return tuple(like.new_empty([0]) if part is None else part.contiguous() for part in found)


def _state(x: Tensor, y: Tensor, r: Tensor, frequencies: Tensor, *waves: Any) -> Tensor:
    state = partials(x, y, r, frequencies, None, Waves(*waves), [False, False, False, False, True])[4]
    assert state is not None
    return state.contiguous()


def _fake_state(x: Tensor, y: Tensor, r: Tensor, frequencies: Tensor, *waves: Any) -> Tensor:
    described = Waves(*waves)
    return x.new_empty([described.num_graphs, num_rows(described, x.shape[1]), y.shape[3]])


def _state_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, y, r, frequencies, *waves = _kept(ctx)
    needed = [*ctx.needs_input_grad[:4], False]
    found = torch.ops.efa_addons.wave_first(x, y, r, frequencies, grad, *waves, needed)
    return *_asked_for(found[:4], needed), *[None] * _NUM_WAVES


def _read_out(x: Tensor, state: Tensor, r: Tensor, frequencies: Tensor, *waves: Any) -> Tensor:
    values = partials(x, None, r, frequencies, state, Waves(*waves), [False, True, False, False, False])[1]
    assert values is not None
    return values.contiguous()


def _fake_read_out(x: Tensor, state: Tensor, r: Tensor, frequencies: Tensor, *waves: Any) -> Tensor:
    weights = Waves(*waves).weights
    return x.new_empty([x.shape[0], 1 if weights is None else weights.shape[1], x.shape[3], state.shape[2]])


def _read_out_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, state, r, frequencies, *waves = _kept(ctx)
    of_x, of_state, of_r, of_frequencies = ctx.needs_input_grad[:4]
    needed = [of_x, False, of_r, of_frequencies, of_state]
    found = torch.ops.efa_addons.wave_first(x, grad, r, frequencies, state, *waves, needed)
    by_x, _, by_r, by_frequencies, by_state = _asked_for(found, needed)
    return by_x, by_state, by_r, by_frequencies, *[None] * _NUM_WAVES


def _first(x: Tensor, y: Tensor, r: Tensor, frequencies: Tensor, state: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return _filled(partials(x, y, r, frequencies, state, Waves(*others[:-1]), others[-1]), x)


def _fake_five(*arguments: Any) -> tuple[Tensor, ...]:
    parts, needed = arguments[:5], arguments[-1]
    found = [part.new_empty(part.shape) if wanted else None for part, wanted in zip(parts, needed, strict=True)]
    return _filled(found, parts[0])


def _first_backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    *arguments, given = _kept(ctx)
    along, needed = _asked_for(grads, given), ctx.needs_input_grad[:5]
    found = torch.ops.efa_addons.wave_second(*arguments, *along, needed)
    return *_asked_for(found, needed), *[None] * (_NUM_WAVES + 1)


def _second(x: Tensor, y: Tensor, r: Tensor, frequencies: Tensor, state: Tensor, *others: Any) -> tuple[Tensor, ...]:
    waves, along, needed = Waves(*others[:_NUM_WAVES]), others[_NUM_WAVES:-1], others[-1]
    return _filled(second_partials(x, y, r, frequencies, state, waves, along, needed), x)


def _asked_for(found: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
    return [part if wanted else None for part, wanted in zip(found, needed, strict=False)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """For the backward pass: `_kept` gives the inputs again."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*(part for part in inputs if isinstance(part, Tensor)))
    ctx.inputs = [None if isinstance(part, Tensor) else part for part in inputs]
    ctx.places = [place for place, part in enumerate(inputs) if isinstance(part, Tensor)]


def _kept(ctx: Any) -> list[Any]:
    inputs = list(ctx.inputs)
    for place, tensor in zip(ctx.places, ctx.saved_tensors, strict=True):
        inputs[place] = tensor
    return inputs


def _register() -> None:
    # What the kernels keep from their first call on would otherwise lie in the memory of Inductor's CUDA graphs.
    unsafe = getattr(torch.Tag, "cudagraph_unsafe", None)
    options: dict[str, Any] = {} if unsafe is None else {"tags": [unsafe]}

    def define(name: str, schema: str, run: Any, fake: Any, backward: Any = None) -> None:
        operator = torch.library.custom_op(f"efa_addons::{name}", run, mutates_args=(), schema=schema, **options)
        operator.register_fake(fake)
        if backward is not None:
            operator.register_autograd(backward, setup_context=_keep)

    define("wave_state", f"(Tensor x, Tensor y, {_ATOMS}, {_WAVES}) -> Tensor", _state, _fake_state, _state_backward)
    schema = f"(Tensor x, Tensor state, {_ATOMS}, {_WAVES}) -> Tensor"
    define("wave_read_out", schema, _read_out, _fake_read_out, _read_out_backward)
    schema = f"(Tensor x, Tensor y, {_ATOMS}, Tensor state, {_WAVES}, bool[] needed) -> {_FIVE}"
    define("wave_first", schema, _first, _fake_five, _first_backward)
    directions = "Tensor? dx, Tensor? dy, Tensor? dr, Tensor? df, Tensor? dstate"
    schema = f"(Tensor x, Tensor y, {_ATOMS}, Tensor state, {_WAVES}, {directions}, bool[] needed) -> {_FIVE}"
    define("wave_second", schema, _second, _fake_five)


if not hasattr(torch.ops.efa_addons, "wave_state"):  # once for all copies of this module: NequIP's packages bring their own
    _register()
