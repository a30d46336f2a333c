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

from efa_addons import EuclideanFastAttention
from efa_addons.ops import backends
from efa_addons.ops.graphs import PairBlocks, pair_blocks
from efa_addons.ops.pairwise import attend_pairs

META = torch.device("meta")
WIDTH_QK, WIDTH_V = 32, 64
BANDWIDTH = 4.3e12  # bytes/s of an H200, measured on such a card
FORMS = ("pairwise, torch", "quadrature, torch", "quadrature, kernels")
CASES = ((256, 20), (64, 64), (1, 1000))  # graphs, and atoms of each


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


def quadrature(num_graphs: int, num_atoms: int, training: bool) -> Callable[[], None]:
    module = EuclideanFastAttention(WIDTH_V, 0, max_length=10.0, method="quadrature", num_features_qk=WIDTH_QK).to(META)
    x = torch.empty(num_graphs * num_atoms, 1, 1, WIDTH_V, device=META)
    batch = torch.empty(len(x), dtype=torch.long, device=META)

    def energy(positions: Tensor) -> Tensor:
        return module(x, positions, batch, num_graphs).sum()

    return _derived(energy, len(x), list(module.parameters()) if training else [])


def pairwise(num_graphs: int, num_atoms: int, training: bool) -> Callable[[], None]:
    """With the graphs side by side, as where their sizes are known: the least that it can take."""
    batch = torch.arange(num_graphs).repeat_interleave(num_atoms)
    layout = [
        PairBlocks(*(part.to(META) if isinstance(part, Tensor) else part for part in blocks))
        for blocks in pair_blocks(batch, [num_atoms] * num_graphs, num_atoms)
    ]
    module = EuclideanFastAttention(WIDTH_V, 0, max_length=10.0, method="pairwise", num_features_qk=WIDTH_QK).to(META)
    x = torch.empty(len(batch), 1, WIDTH_V, device=META)

    def energy(positions: Tensor) -> Tensor:
        return attend_pairs(module.q(x), module.k(x), module.v(x), positions, module.frequencies, layout).sum()

    return _derived(energy, len(batch), list(module.parameters()) if training else [])


def _derived(energy: Callable[[Tensor], Tensor], num_atoms: int, weights: list[Tensor]) -> Callable[[], None]:
    """Energy and forces, and the gradient of a loss of both by the weights where there are any."""
    positions = torch.empty(num_atoms, 3, device=META, requires_grad=True)

    def run() -> None:
        total = energy(positions)
        (forces,) = torch.autograd.grad(total, [positions], create_graph=bool(weights))
        if weights:
            torch.autograd.grad(total.square() + forces.square().sum(), weights, allow_unused=True)

    return run


def counted(form: str, num_graphs: int, num_atoms: int, training: bool) -> Traffic:
    """Of one of `FORMS`."""
    run = (pairwise if form.startswith("pairwise") else quadrature)(num_graphs, num_atoms, training)
    traffic = Traffic()
    if form.endswith("kernels"):
        with _kernels_counted(traffic), traffic:
            run()
    else:
        with backends.backend("chunked"), traffic:
            run()
    return traffic


def main() -> None:
    forms = FORMS if importlib.util.find_spec("triton") else FORMS[:2]
    print("| structures | task | form | operations | MB | ms at 4.3 TB/s |\n|---|---|---|---:|---:|---:|")
    for num_graphs, num_atoms in CASES:
        for task in ("forces", "training"):
            for form in forms:
                found = counted(form, num_graphs, num_atoms, task == "training")
                size, ms = found.bytes / 1e6, 1e3 * found.bytes / BANDWIDTH
                print(f"| {num_graphs} x {num_atoms} | {task} | {form} | {found.launches} | {size:.3g} | {ms:.2g} |")


if __name__ == "__main__":
    main()
