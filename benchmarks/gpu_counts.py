"""Operations that torch launches on a GPU for energy and forces, and the bytes they read and write: counted, nothing is timed.

`python -m benchmarks.gpu_counts` runs the attention on tensors without memory, which take the way of those on a GPU. Kernels of
`ops.triton_kernels` count as one operation each, and are not run. Bytes are those of arguments and results of every operation,
as if the caches of the device kept nothing: what torch's operations, one after the other, have to move.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.problems import Problem, arrays
from efa_addons import EuclideanFastAttention
from efa_addons.ops import backends
from efa_addons.ops.graphs import PairBlocks, center_positions, pair_blocks

META = torch.device("meta")
WIDTH_QK, WIDTH_V = 32, 64
BANDWIDTH = 4.3e12  # bytes/s of an H200, measured on such a card
FORMS = PAIRS, TORCH, KERNELS = ("pairwise, torch", "quadrature, torch", "quadrature, kernels")
# Graphs and atoms of each. Points: none, for phases go up to π, the attention's default.
CASES = [Problem(*sizes, WIDTH_QK, WIDTH_V, points=0) for sizes in ((256, 20), (64, 64), (1, 1000))]


class Traffic(TorchDispatchMode):
    """launches: operations that are no views; bytes: of their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        before, after = ({t.untyped_storage()._cdata for t in _tensors(these)} for these in ((args, kwargs), out))
        is_view = after <= before and not function._schema.is_mutable
        if not is_view and "empty" not in str(function):
            self.add((args, kwargs, out))
        return out

    def add(self, arguments: Any) -> None:
        self.launches += 1
        seen = {id(t): t for t in _tensors(arguments)}
        # what is broadcast is read once
        self.bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in seen.values())


def _tensors(arguments: Any) -> list[Tensor]:
    return [part for part in tree_leaves(arguments) if isinstance(part, Tensor)]


class _Launcher:
    """Stands for a kernel: kernel[grid](*arguments)."""

    def __init__(self, traffic: Traffic) -> None:
        self.traffic = traffic

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *arguments, **constants: self.traffic.add(arguments)


@contextmanager
def _kernels_counted(traffic: Traffic) -> Iterator[None]:
    """Within it the sums are made by kernels that are counted and not run."""
    from efa_addons.ops import triton_waves

    names = ("arrange", "state", "read_out", "pull")
    before = [getattr(triton_waves.kernels, name) for name in names], triton_waves._processors, backends.why_not_triton
    try:
        for name in names:
            setattr(triton_waves.kernels, name, _Launcher(traffic))
        triton_waves._processors = lambda device: 132
        backends.why_not_triton = lambda device, dtype: ""
        with backends.backend("triton"):
            yield
    finally:
        for name, kernel in zip(names, before[0], strict=True):
            setattr(triton_waves.kernels, name, kernel)
        triton_waves._processors, backends.why_not_triton = before[1:]


def task(form: str, problem: Problem, device: torch.device, training: bool = False, known: bool = True) -> Callable[[], Any]:
    """Energy and forces of one of `FORMS`, or the gradient of a loss of both by the weights, which are frozen otherwise.

    Args:
        known: pairs are of graphs laid out beforehand; if not, every call waits for their sizes.
    """
    data = arrays(problem)
    pairs = form == PAIRS
    module = EuclideanFastAttention(
        problem.width_v, 0, max_length=data.max_length, method="pairwise" if pairs else "quadrature",
        num_features_qk=problem.width_qk,
    ).to(device).requires_grad_(training)  # fmt: skip
    x, positions, batch = (torch.from_numpy(part).to(device) for part in (data.inputs, data.positions, data.batch))
    positions.requires_grad_()
    weights = list(module.parameters()) if training else []
    layout = [
        PairBlocks(*(part.to(device) if isinstance(part, Tensor) else part for part in blocks))
        for blocks in pair_blocks(torch.from_numpy(data.batch), [problem.num_atoms] * problem.num_graphs, problem.num_atoms)
    ]

    def energy() -> Tensor:
        if not (pairs and known):
            return module(x, positions, batch, problem.num_graphs).sum()
        centred = center_positions(positions, batch, problem.num_graphs)
        return module._by_pairs(*module.project(x), centred, layout).sum()

    def run() -> Any:
        total = energy()
        (forces,) = torch.autograd.grad(total, [positions], create_graph=training)
        if not training:
            return total.detach(), forces
        return torch.autograd.grad(total.square() + forces.square().sum(), weights, allow_unused=True)

    return run


def counted(form: str, problem: Problem, training: bool) -> Traffic:
    """Of one of `FORMS`, in a call after the first, which makes tables."""
    run = task(form, problem, META, training)
    traffic = Traffic()
    with _kernels_counted(traffic) if form == KERNELS else backends.backend("chunked"):
        run()
        traffic.launches = traffic.bytes = 0
        with traffic:
            run()
    return traffic


def main() -> None:
    forms = FORMS if importlib.util.find_spec("triton") else FORMS[:2]
    print("| structures | task | form | operations | MB | ms at 4.3 TB/s |\n|---|---|---|---:|---:|---:|")
    for problem in CASES:
        for what in ("forces", "training"):
            for form in forms:
                found = counted(form, problem, what == "training")
                size, ms = found.bytes / 1e6, 1e3 * found.bytes / BANDWIDTH
                print(f"| {problem} | {what} | {form} | {found.launches} | {size:.3g} | {ms:.2g} |")


if __name__ == "__main__":
    main()
