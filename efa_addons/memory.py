"""Memory that EFA will need, from a run of the blocks alone."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from efa_addons.nn.attention import EuclideanFastAttention
from efa_addons.nn.block import EFABlock


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is on, and keeps the largest sum alive at once.

    with PeakMemory() as memory:
        ...
    memory.peak  # bytes
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        inputs = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in inputs and storage._cdata not in self._known:
                    self._add(storage)
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)

        def forget() -> None:
            self._known.discard(key)
            self.alive -= size

        weakref.finalize(storage, forget)


# So many are run; beyond twice as many (for pairs, as many), memory follows from two such runs or smaller ones.
_ATOMS = 4096
_ATOMS_OF_KERNELS = 65_536  # whose sums are cut into shares for their length from some 30,000 on, before to fill the device


def predict_memory(blocks: Sequence[EFABlock], atoms_per_graph: int, num_graphs: int, training: bool = True) -> int:
    """Bytes that EFA needs at its peak, beside parameters and the host's own tensors.

    The batch is run on the blocks' own device; of a large one as much as it takes to see what each further atom and graph adds.

    Args:
        blocks: of the layers of a model, which run one after the other and all wait for the backward pass.
        atoms_per_graph, num_graphs: of a batch.
        training: forward, forces and the backward pass of a loss of both; otherwise forward and forces.
    """

    def peak(atoms: int, graphs: int) -> int:
        with PeakMemory() as memory:
            _run(blocks, atoms, graphs, training)
        return memory.peak

    on_cpu = _is_on_cpu(blocks[0])
    if not on_cpu:
        _run(blocks, 2, 1, training)  # where kernels take part they are checked first, for which nothing may be counted
    pairs = any(_takes_pairs(block.attention, atoms_per_graph, on_cpu) for block in blocks)
    run = _ATOMS if on_cpu or pairs else _ATOMS_OF_KERNELS
    if atoms_per_graph * num_graphs <= (run if pairs else 2 * run):
        return peak(atoms_per_graph, num_graphs)
    if pairs and atoms_per_graph > run // 2:
        return num_graphs * _parabola(run // 8, [peak(n * run // 8, 1) for n in (1, 2, 4)], atoms_per_graph)
    if atoms_per_graph <= run:
        some = run // atoms_per_graph
        few, more = peak(atoms_per_graph, some), peak(atoms_per_graph, 2 * some)
        return few + (more - few) * (num_graphs - some) // some
    one, two = peak(run, 1), peak(run, 2)
    double = peak(2 * run, 1)
    of_graph = two - double  # beside its atoms
    return one + (num_graphs - 1) * of_graph + (double - one) * (atoms_per_graph * num_graphs - run) // run


def _is_on_cpu(block: EFABlock) -> bool:
    return next(block.parameters()).device.type == "cpu"


def _takes_pairs(attention: nn.Module, atoms_per_graph: int, on_cpu: bool) -> bool:
    if not isinstance(attention, EuclideanFastAttention):
        return False
    return atoms_per_graph <= attention.pairwise_up_to if on_cpu else attention.method == "pairwise"


def _parabola(step: int, values: list[int], x: int) -> int:
    """At x the parabola through values at 1, 2 and 4 steps."""
    first, second, fourth = values
    u = x / step
    slope, curvature = second - first, ((fourth - second) / 2 - (second - first)) / 3
    return int(first + slope * (u - 1) + curvature * (u - 1) * (u - 2))


def _run(blocks: Sequence[EFABlock], atoms_per_graph: int, num_graphs: int, training: bool) -> None:
    weights = [p for block in blocks for p in block.parameters() if p.requires_grad]
    like = next(blocks[0].parameters())
    positions = torch.zeros(atoms_per_graph * num_graphs, 3, dtype=like.dtype, device=like.device, requires_grad=True)
    batch = torch.arange(num_graphs, device=like.device).repeat_interleave(atoms_per_graph)
    energy = positions.new_zeros([])
    for block in blocks:
        x = positions.new_zeros([positions.shape[0], block.pack.dim]).requires_grad_()
        energy = energy + (block(x, positions, batch, num_graphs) ** 2).sum()
    (forces,) = torch.autograd.grad(energy, [positions], create_graph=training, allow_unused=True)
    if training and weights:
        loss = energy if forces is None else energy + (forces**2).sum()  # none from emulated blocks, which see no positions
        torch.autograd.grad(loss, weights, allow_unused=True)
