"""Blocks of an inference as CUDA graphs: what a GPU computes in less than a millisecond takes ten times as long to launch.

A block that was called a few times with tensors of the same shapes (as in molecular dynamics) is recorded, forward and backward
pass, and from then on replayed. Recorded are blocks whose parameters are not trained, outside of traces, of captures by others,
of autocast, inference mode and transforms, without hooks, and for structures that a GPU has soon done. A derivative of a
derivative is computed without the recording, as are calls of other shapes. `EFA_ADDONS_CUDA_GRAPHS=0` switches it off.

What is recorded lives in memory of its own, which the next call overwrites; results are copies. A backward pass that comes
after another call of the block, or for the second time, first replays its own forward pass again.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode

from efa_addons.distributed import spread
from efa_addons.errors import EFAError, EFAWarning, unknown_names
from efa_addons.ops import backends
from efa_addons.ops.tracing import capturing, tracing, transformed

VARIABLE = "EFA_ADDONS_CUDA_GRAPHS"
_ON = ("cuda",)
CALLS = 3  # of the same kind before one is recorded: kernels are compiled and checked by then
_KEPT = 4  # recordings of a block; the one that was not used for longest makes room
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks")
_MOST_ATOMS = 10_000  # beyond, launching is no longer what takes the time, and memory would be kept

Compute = Callable[[Tensor, Tensor, "Tensor | None", "int | None"], Tensor]


class _Kind(NamedTuple):
    """Calls that one recording can serve."""

    shapes: tuple[Any, ...]
    needs_grad: tuple[bool, bool]  # of features and positions
    device: torch.device
    stream: int
    num_graphs: int | None
    settings: tuple[Any, ...]  # back end, precisions: what else decides on the numbers


class _Graph:
    """A function without arguments as a CUDA graph. `results` are the same tensors in every replay."""

    def __init__(self, run: Callable[[], Any], device: torch.device, before: _Graph | None = None) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # graphs that share memory are captured on the same stream, and torch's own is that of the first device it was used on
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device) if before is None else before._stream
        pool = None if before is None else before._graph.pool()
        try:
            with _own_workspaces(), _capture(self._graph, self._stream, pool):
                self.results = run()
        except BaseException:
            _mend(self._graph, device)
            raise

    def replay(self) -> None:
        self._graph.replay()


def _capture(graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, pool: Any = None) -> torch.cuda.graph:
    return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")


@contextlib.contextmanager
def _own_workspaces() -> Iterator[None]:
    """Memory of cuBLAS that goes with the graph captured within: torch keeps it for each stream, and has 32 of these. Of two
    graphs captured on the same one, the second would use the first one's, and lose it with that one."""
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None)  # builds for a CPU have none
    clear()
    try:
        yield
    finally:
        clear()


def _mend(graph: torch.cuda.CUDAGraph, device: torch.device) -> None:
    """What torch leaves of a capture that CUDA broke off, at an operation that waits, say: before torch 2.13 its generator
    takes the capture to go on, and refuses random numbers and every replay in the process, until another capture ends."""
    with contextlib.suppress(RuntimeError):
        graph.pool()  # which only a capture that ended has
        return
    _broken.append(graph)  # torch's allocator goes on asking it
    with contextlib.suppress(RuntimeError), _capture(torch.cuda.CUDAGraph(), torch.cuda.Stream(device)):
        torch.zeros(1, device=device)


def _warm_up(run: Callable[[], Any], device: torch.device) -> None:
    """On a stream beside, as libraries make themselves ready in their first call on one."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream(device).wait_stream(side)


class _Recording:
    """One kind of call of a block: the tensors that it reads and writes, its graphs, and whose values they hold."""

    def __init__(
        self, compute: Compute, x: Tensor, positions: Tensor, batch: Tensor | None, kind: _Kind, weights: list[Tensor]
    ) -> None:
        self.weights = [weight.detach() for weight in weights]  # whose memory the graphs read
        self.x = x.detach().clone().requires_grad_(kind.needs_grad[0])
        self.positions = positions.detach().clone().requires_grad_(kind.needs_grad[1])
        self.batch = None if batch is None else batch.clone()
        self.inputs = [given for given in (self.x, self.positions) if given.requires_grad]
        self.number = 0  # of the call whose values are there, negative where a backward pass has used them up
        self.lock = threading.Lock()
        held: list[Tensor] = []

        def forward() -> Tensor:
            held.clear()  # of the warm-up, whose graph belongs to its stream
            held.append(compute(self.x, self.positions, self.batch, kind.num_graphs))
            return held[0]

        def backward() -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(held[0], self.inputs, self.grad, allow_unused=True)

        with torch.set_grad_enabled(bool(self.inputs)):
            out = compute(self.x, self.positions, self.batch, kind.num_graphs)
            self.grad = torch.zeros_like(out)
            if not out.requires_grad:
                self.inputs = []
            del out

            def both() -> None:
                forward()
                if self.inputs:
                    backward()

            _warm_up(both, kind.device)
            self._forward = _Graph(forward, kind.device)
            self.out = self._forward.results.detach()
            if self.inputs:
                self._backward = _Graph(backward, kind.device, self._forward)
        self._forward.results = None

    def _run(self, x: Tensor, positions: Tensor, batch: Tensor | None, number: int) -> None:
        with torch.no_grad():
            self.x.copy_(x)
            self.positions.copy_(positions)
            if batch is not None and self.batch is not None:
                self.batch.copy_(batch)
            self._forward.replay()
        self.number = number

    def output(self, x: Tensor, positions: Tensor, batch: Tensor | None, number: int) -> Tensor:
        with self.lock:
            self._run(x, positions, batch, number)
            return self.out.clone()

    def gradients(
        self, grad: Tensor, x: Tensor, positions: Tensor, batch: Tensor | None, number: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """By x and positions, of the call of this number."""
        if not self.inputs:
            return None, None
        with self.lock:
            if self.number != number:
                self._run(x, positions, batch, number)
            self.grad.copy_(grad)
            self._backward.replay()
            self.number = -1  # what the forward pass left is used up
            found = iter([None if part is None else part.clone() for part in self._backward.results])
        by_x, by_positions = (next(found) if given.requires_grad else None for given in (self.x, self.positions))
        return by_x, by_positions


class _Call(NamedTuple):
    """What a backward pass has to know of its forward pass."""

    recording: _Recording
    number: int
    compute: Compute
    num_graphs: int | None
    replays: _Replays
    stamp: int
    chosen: str


class _Replay(torch.autograd.Function):
    """A call of a block by its recording."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, positions: Tensor, batch: Tensor | None, call: _Call) -> Tensor:
        ctx.save_for_backward(x, positions, batch)
        ctx.call = call
        return call.recording.output(x, positions, batch, call.number)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, positions, batch = ctx.saved_tensors
        call: _Call = ctx.call
        if call.replays.stamp() != call.stamp:
            raise EFAError(
                "weights of EFA were changed in place between a forward pass and its backward pass: call the model again."
            )
        again = torch.is_grad_enabled()
        if not again and not _batched(grad):
            return *call.recording.gradients(grad, x, positions, batch, call.number), None, None
        if not call.replays.hold():
            raise EFAError("a block of EFA was changed between a forward pass and its backward pass: call the model again.")
        with torch.enable_grad(), backends.backend(call.chosen):
            x, positions = x.view_as(x), positions.view_as(positions)  # features may depend on positions: not by this way
            out = call.compute(x, positions, batch, call.num_graphs)
        if not out.requires_grad:
            return None, None, None, None
        wanted = [given for given, needed in zip((x, positions), ctx.needs_input_grad, strict=False) if needed]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=again, allow_unused=True))
        by_x, by_positions = (next(found) if needed else None for needed in ctx.needs_input_grad[:2])
        return by_x, by_positions, None, None


def _batched(x: Tensor) -> bool:
    """Many at once (is_grads_batched, torch.vmap), which cannot be copied into one."""
    return torch._C._functorch.is_batchedtensor(x) or torch._C._functorch.is_legacy_batchedtensor(x)


class _Replays:
    """The recordings of a block, and the calls that may become some."""

    def __init__(self, block: nn.Module) -> None:
        parts = list(block.modules())
        registers: list[dict[str, Any]] = [each for part in parts for each in (part._modules, part._parameters, part._buffers)]
        self.sizes = [(register, len(register)) for register in registers]
        self.entries = [(register, name, own) for register in registers for name, own in register.items()]
        self.tensors = [(own, own.data_ptr()) for _, _, own in self.entries if isinstance(own, Tensor)]
        self.options = [(vars(part), _options(part)) for part in parts]
        self.modules = [part for part in parts if part is not block]
        self.calls: dict[_Kind, int] = {}
        self.recordings: dict[_Kind, _Recording] = {}
        self.recorded: dict[_Kind, int] = {}  # how often
        self.failed: set[_Kind] = set()
        self.numbers = itertools.count(1)

    def hold(self) -> bool:
        """Whether all that a recording takes for granted is as it was; false for trained parameters and hooks, too."""
        if any(len(register) != size for register, size in self.sizes):
            return False
        for register, name, own in self.entries:
            if register.get(name) is not own:
                return False
        for tensor, address in self.tensors:
            if tensor.requires_grad or tensor.data_ptr() != address or tensor.is_inference():
                return False
        for attributes, options in self.options:
            for name, value in options:
                if attributes.get(name) != value:
                    return False
        return not any(_has_hooks(module) for module in self.modules)

    def stamp(self) -> int:
        """Another one once a tensor was changed in place."""
        return sum(tensor._version for tensor, _ in self.tensors)

    def of(self, kind: _Kind) -> _Recording | None:
        """That of a kind, which becomes the latest."""
        found = self.recordings.pop(kind, None)
        if found is not None:
            self.recordings[kind] = found
        return found

    def due(self, kind: _Kind) -> bool:
        """Whether this call is to be recorded: the more often its kind was and had to make room for others, the later."""
        if kind in self.failed or _broken:
            return False
        if len(self.calls) > 1000:  # of ever new shapes
            self.calls.clear()
        self.calls[kind] = self.calls.get(kind, 0) + 1
        return self.calls[kind] > CALLS * 8 ** self.recorded.get(kind, 0)

    def keep(self, kind: _Kind, recording: _Recording | None) -> None:
        self.calls.pop(kind, None)
        if recording is None:
            self.failed.add(kind)
            return
        self.recorded[kind] = self.recorded.get(kind, 0) + 1
        self.recordings[kind] = recording
        while len(self.recordings) > _KEPT:
            self.recordings.pop(next(iter(self.recordings)))


def _options(module: nn.Module) -> list[tuple[str, Any]]:
    """Its plain attributes, but for what it remembers of its warnings."""
    plain = (bool, int, float, str, type(None))
    return [(name, value) for name, value in vars(module).items() if type(value) in plain and not name.startswith("_warned")]


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


_of: weakref.WeakKeyDictionary[nn.Module, _Replays] = weakref.WeakKeyDictionary()
# Of each block in training the place of a parameter that is trained.
_trained: weakref.WeakKeyDictionary[nn.Module, tuple[dict[str, Any], str]] = weakref.WeakKeyDictionary()
_recording = threading.Lock()  # one at a time
_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # from torch 2.8 on
_broken: list[torch.cuda.CUDAGraph] = []  # captures that were broken off: after one, nothing more is recorded


def wanted() -> bool:
    """Whether blocks may be recorded at all: EFA_ADDONS_CUDA_GRAPHS is 1 (or not set), not 0, and torch is not for ROCm, where
    graphs of matrix products are reported to lose memory with every replay (ROCm/rocm-libraries#9505).

    Raises:
        EFAError: it is something else.
    """
    given = os.environ.get(VARIABLE) or "1"
    if given not in ("0", "1"):
        raise unknown_names(VARIABLE, [given], ("0", "1"))
    return given == "1" and torch.version.hip is None


def _may_serve(x: Tensor, batch: Tensor | None, num_graphs: int | None) -> bool:
    """Whether this call could be a replay, by what costs little to ask."""
    if x.device.type not in _ON or tracing() or torch.jit.is_tracing() or x.dim() != 2 or not 0 < x.shape[0] <= _MOST_ATOMS:
        return False
    if (batch is not None and num_graphs is None) or spread() or not wanted():
        return False
    if torch.is_inference_mode_enabled() or _get_current_dispatch_mode() is not None:
        return False
    # vmap and others, whose tensors cannot be copied into ours
    if transformed():
        return False
    if any(getattr(torch_module, hooks) for hooks in _GLOBAL_HOOKS):
        return False
    # of torch.utils.checkpoint, which counts what is saved, and others
    if _saved_tensors_hooks is None or _saved_tensors_hooks(False) is not None:
        return False
    if capturing(x.device) or (x.device.type == "cuda" and torch.cuda.current_device() != x.device.index):
        return False
    return not torch.is_autocast_enabled(x.device.type)


def _is_trained(block: nn.Module) -> bool:
    """Whether it is known to be in training."""
    if block not in _trained:
        return False
    register, name = _trained[block]
    return bool(getattr(register.get(name), "requires_grad", False))


def _settings() -> tuple[Any, ...]:
    """What decides on numbers beside the arguments."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # set by the newer names
        precision = ""
    return (
        *backends.state(),
        precision,
        getattr(torch.backends.cuda.matmul, "fp32_precision", None),
        getattr(torch.backends, "fp32_precision", None),
        torch.are_deterministic_algorithms_enabled(),
    )


def replayed(
    block: nn.Module, compute: Compute, x: Tensor, positions: Tensor, batch: Tensor | None, num_graphs: int | None
) -> Tensor | None:
    """`compute(x, positions, batch, num_graphs)` by a recording, or none where it is to be called as it is.

    Args:
        block: whose parameters and buffers `compute` uses, and no others.
    """
    if not _may_serve(x, batch, num_graphs) or _is_trained(block):
        return None
    replays = _of.get(block)
    if replays is None or not replays.hold():
        _of.pop(block, None)
        replays = _Replays(block)
        if not replays.hold():
            for register, name, own in replays.entries:
                if isinstance(own, Tensor) and own.requires_grad:
                    _trained[block] = register, name
            return None
        _of[block] = replays
    grads = torch.is_grad_enabled()
    kind = _Kind(
        (x.shape, x.dtype, positions.shape, positions.dtype, None if batch is None else (batch.shape, batch.dtype)),
        (grads and x.requires_grad, grads and positions.requires_grad),
        x.device,
        torch.cuda.current_stream(x.device).cuda_stream if x.device.type == "cuda" else 0,
        num_graphs,
        _settings(),
    )
    recording = replays.of(kind)
    if recording is None:
        if not replays.due(kind):
            return None
        if not _recording.acquire(blocking=False):  # what another thread does is not waited for: autograd's may wait for this
            return None
        try:
            recording = replays.of(kind) or _recorded(replays, compute, x, positions, batch, kind)
        finally:
            _recording.release()
        if recording is None:
            return None
    call = _Call(recording, next(replays.numbers), compute, num_graphs, replays, replays.stamp(), backends.state()[0])
    return _Replay.apply(x, positions, batch, call)


def _recorded(
    replays: _Replays, compute: Compute, x: Tensor, positions: Tensor, batch: Tensor | None, kind: _Kind
) -> _Recording | None:
    stream = torch.cuda.current_stream(kind.device) if kind.device.type == "cuda" else None
    recording = None
    try:
        recording = _Recording(compute, x, positions, batch, kind, [tensor for tensor, _ in replays.tensors])
    except EFAError:
        raise
    except Exception as error:  # of any driver or compiler: what is computed otherwise must not fail for this
        if stream is not None:
            torch.cuda.set_stream(stream)  # a capture that fails may leave its own
        if not isinstance(error, torch.OutOfMemoryError):
            warnings.warn(
                f"a block of EFA was not recorded as a CUDA graph ({type(error).__name__}: {str(error)[:200]}): it is computed "
                f"as before, in more time. {VARIABLE}=0 keeps it from being tried.",
                EFAWarning,
                stacklevel=3,
            )
    replays.keep(kind, recording)
    return recording
