"""Recorded blocks: the same numbers as computed ones, whatever comes between. On a GPU where there is one, and on a CPU, where
what is recorded is run again in place of a CUDA graph."""

import contextlib
import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
import torch.utils.checkpoint
from gpu_support import gpu, recordings

from efa_addons import EFABlock, EFAConfig, EFAError, EFAWarning
from efa_addons.nn import replay
from efa_addons.ops.backends import backend, interpreted

CONFIG = EFAConfig(max_length=20.0, num_features_qk=4, num_features_v=4, mlp_features=8, lebedev_num=26, method="quadrature")
IRREPS = "8x0e+8x1o"


pytestmark = pytest.mark.skipif(replay._saved_tensors_hooks is None, reason="nothing is recorded before torch 2.8")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=gpu)])
def device(request, monkeypatch):
    recordings(monkeypatch, request.param)
    return request.param


@pytest.fixture
def block(device, randomized):
    torch.manual_seed(0)
    made = randomized(EFABlock(IRREPS, IRREPS, CONFIG)).to(device, torch.float32).eval()
    return made.requires_grad_(False)


def structure(block, seed, num_atoms=9, num_graphs=2):
    """x that depends on the positions, positions, batch, number of graphs."""
    generator = torch.Generator().manual_seed(seed)
    like = next(block.parameters())
    positions = 3 * torch.randn(num_atoms, 3, generator=generator, dtype=torch.float64)
    mixing = torch.randn(3, block.pack.dim, generator=generator).to(like)
    batch = torch.arange(num_atoms, device=like.device) * num_graphs // num_atoms
    positions = positions.to(like).requires_grad_()
    return torch.sin(positions @ mixing), positions, batch, num_graphs


def results(block, x, positions, batch, num_graphs, compute=None):
    out = (compute or block)(x, positions, batch, num_graphs)
    (forces,) = torch.autograd.grad(out.square().sum(), positions, retain_graph=True)
    return out, forces


def same(found, expected):
    for value, reference in zip(found, expected, strict=True):
        assert (value - reference).norm() <= 1e-5 * reference.norm() + 1e-7


def recorded(block):
    return [kept for kept in replay._of[block].recordings.values() if kept is not None] if block in replay._of else []


@pytest.fixture
def counted(monkeypatch):
    """Grows by one with each replay of a forward pass, and of one before a backward pass."""
    counts, run = [], replay._Recording._run
    monkeypatch.setattr(replay._Recording, "_run", lambda *given: (counts.append(1), run(*given)))
    return counts


def warm(block, seed=0, **sizes):
    """Until the block is recorded."""
    for _ in range(replay.CALLS + 1):
        results(block, *structure(block, seed, **sizes))
    assert recorded(block)


def test_the_same_numbers(block, counted):
    warm(block)
    (one,) = recorded(block)
    del counted[:]
    for seed in range(3):
        same(results(block, *structure(block, seed)), results(block, *structure(block, seed), block.residual))
    assert recorded(block) == [one] and len(counted) == 3


def test_sums_over_pairs_of_several_graphs_go_by_their_sizes(device, randomized):
    """A recording would hold for one division into graphs; one graph has none."""
    config = CONFIG.replace(method="pairwise", lebedev_num=None)
    block = randomized(EFABlock(IRREPS, IRREPS, config)).to(device, torch.float32).eval().requires_grad_(False)
    for seed in range(replay.CALLS + 2):
        x, positions, batch, num_graphs = structure(block, seed)
        batch = (torch.arange(len(batch), device=device) > seed).long()
        same(results(block, x, positions, batch, num_graphs), results(block, x, positions, batch, num_graphs, block.residual))
    assert not recorded(block)
    warm(block, num_graphs=1)


def test_results_are_no_ones_memory(block):
    """Neither outputs nor gradients change with the next call."""
    warm(block)
    first = results(block, *structure(block, 1))
    kept = [value.clone() for value in first]
    results(block, *structure(block, 2))
    assert all(torch.equal(value, copied) for value, copied in zip(first, kept, strict=True))


def test_backward_passes_in_any_order(block, counted):
    """The second call overwrites what the first left; one of them goes backward twice."""
    warm(block)
    del counted[:]
    expected = [results(block, *structure(block, seed), block.residual)[1] for seed in (1, 2)]
    given = [structure(block, seed) for seed in (1, 2)]
    losses = [block(*arguments).square().sum() for arguments in given]
    found = [torch.autograd.grad(losses[n], given[n][1], retain_graph=True)[0] for n in (0, 1, 1, 0)]
    same(found, [expected[n] for n in (0, 1, 1, 0)])
    assert len(counted) == 2 + 4  # all four find what is not their own, or used up


def test_a_block_that_serves_two_layers(block):
    """Called with its own output."""
    warm(block)
    x, positions, batch, num_graphs = structure(block, 1)

    def twice(compute):
        return torch.autograd.grad(
            compute(compute(x, positions, batch, num_graphs), positions, batch, num_graphs).square().sum(),
            positions, retain_graph=True,
        )  # fmt: skip

    same(twice(block), twice(block.residual))


def test_second_derivatives(block):
    warm(block)
    found = []
    for compute in (block, block.residual):
        x, positions, batch, num_graphs = structure(block, 1)
        (first,) = torch.autograd.grad(compute(x, positions, batch, num_graphs).square().sum(), positions, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), positions))
    same(*found)


def test_many_gradients_at_once(block):
    """Back ends that take part in vmap do so in recorded blocks, too."""
    warm(block)
    with backend("plain"):
        warm(block)
        found = []
        for compute in (block, block.residual):
            x, positions, batch, num_graphs = structure(block, 1)
            out = compute(x, positions, batch, num_graphs)
            directions = torch.stack([torch.ones_like(out), out.detach()])
            found.append(torch.autograd.grad(out, positions, directions, retain_graph=True, is_grads_batched=True))
            found[-1] += (
                torch.vmap(lambda d, o=out, p=positions: torch.autograd.grad(o, p, d, retain_graph=True)[0])(directions),
            )
    same(*found)


def test_without_gradients(block):
    with torch.no_grad():
        for seed in range(replay.CALLS + 3):
            arguments = structure(block, seed)
            out = block(*arguments)
            same([out], [block.residual(*arguments)])
            assert not out.requires_grad
    assert len(recorded(block)) == 1


def test_positions_alone(block):
    """As in a first layer, whose features know nothing of positions."""
    for seed in range(replay.CALLS + 2):
        x, positions, batch, num_graphs = structure(block, seed)
        same(*(results(block, x.detach(), positions, batch, num_graphs, compute) for compute in (block, block.residual)))
    assert len(recorded(block)) == 1


def test_emulated(device, randomized):
    """It does not depend on positions and, as a first layer, on nothing that needs gradients."""
    block = randomized(EFABlock(IRREPS, IRREPS, CONFIG.replace(emulate=True))).to(device).requires_grad_(False)
    for seed in range(replay.CALLS + 2):
        x, positions, batch, num_graphs = structure(block, seed)
        same(*(results(block, x, positions, batch, num_graphs, compute) for compute in (block, block.residual)))
        out = block(x.detach(), positions, batch, num_graphs)
        same([out], [block.residual(x.detach(), positions, batch, num_graphs)])
        total = out.sum() + positions.square().sum()
        same(torch.autograd.grad(total, positions), [2 * positions])
    assert len(recorded(block)) == 2


def test_other_shapes_and_graphs(block):
    """Sizes, numbers of graphs and assignments of atoms to them; recorded are the latest few."""
    for num_atoms in range(5, 5 + replay._KEPT + 2):
        warm(block, num_atoms=num_atoms)
    assert len(recorded(block)) == replay._KEPT
    for num_atoms in range(5, 5 + replay._KEPT + 2):
        for num_graphs in (1, 3):
            given = structure(block, 1, num_atoms, num_graphs)
            same(results(block, *given), results(block, *given, block.residual))
    x, positions, batch, num_graphs = structure(block, 1)
    warm(block)
    other = batch.flip(0)
    same(results(block, x, positions, other, 2), results(block, x, positions, other, 2, block.residual))


def test_new_sizes_are_not_recorded(block):
    for num_atoms in range(4, 12):
        results(block, *structure(block, 0, num_atoms=num_atoms))
    assert not recorded(block)


CHANGES = ["values", "parameter", "module", "one more", "option", "dtype"]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_blocks(block, change, counted):
    """Other values are seen; for all else what was recorded is of no use."""
    warm(block)
    del counted[:]
    with torch.no_grad():
        if change == "values":
            block.out.weight.mul_(2.0)
        elif change == "parameter":
            block.out.weight = torch.nn.Parameter(3.0 * block.out.weight, requires_grad=False)
        elif change == "module":
            block.mlp[0] = copy.deepcopy(block.mlp[0])
            block.mlp[0].weight.mul_(2.0)
        elif change == "one more":
            block.mlp.append(torch.nn.Tanh())
        elif change == "option":
            block.attention.include_self = False
        else:
            block.double()
    given = structure(block, 1)
    same(results(block, *given), results(block, *given, block.residual))
    assert len(counted) == (change == "values")


def test_weights_changed_before_the_backward_pass(block):
    warm(block)
    given = structure(block, 1)
    loss = block(*given).sum()
    with torch.no_grad():
        block.out.weight.mul_(2.0)
    with pytest.raises(EFAError, match="weights of EFA were changed in place between"):
        torch.autograd.grad(loss, given[1])


def test_weights_replaced_before_the_backward_pass(block):
    """The first derivative is that of the weights of the forward pass; what would have to be computed again is an error."""
    warm(block)
    given = structure(block, 1)
    (expected,) = torch.autograd.grad(block.residual(*given).sum(), given[1], retain_graph=True)
    for again in (False, True):
        warm(block)
        loss = block(*given).sum()
        before = block.out.weight
        block.out.weight = torch.nn.Parameter(2.0 * before, requires_grad=False)
        results(block, *structure(block, 2))
        if again:
            with pytest.raises(EFAError, match="block of EFA was changed between"):
                torch.autograd.grad(loss, given[1], create_graph=True)
        else:
            same(torch.autograd.grad(loss, given[1], retain_graph=True), [expected])
        block.out.weight = before


def test_precisions_by_torchs_newer_names(block, counted):
    """After which the older ones raise."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch has none yet")
    warm(block)
    before = torch.backends.cuda.matmul.fp32_precision
    del counted[:]
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        results(block, *structure(block, 1))
        assert not counted
        warm(block)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("before", range(4))
def test_checkpoints(block, before):
    """Which count what a forward pass saves, and call again in the backward pass."""
    for _ in range(before):
        results(block, *structure(block, 0))
    for seed in range(4):
        x, positions, batch, num_graphs = structure(block, seed)
        out = torch.utils.checkpoint.checkpoint(block, x, positions, batch, num_graphs, use_reentrant=False)
        (found,) = torch.autograd.grad(out.square().sum(), positions)
        same([found], [results(block, *structure(block, seed), block.residual)[1]])


def test_a_recording_of_another_thread_is_not_waited_for(block):
    with replay._recording:
        for _ in range(replay.CALLS + 2):
            results(block, *structure(block, 0))
        assert not recorded(block)
    results(block, *structure(block, 0))
    assert recorded(block)


def test_a_parameter_that_takes_the_place_of_a_trained_one(block):
    block.out.weight.requires_grad_()
    results(block, *structure(block, 0))
    block.out.weight = torch.nn.Parameter(block.out.weight.detach().clone(), requires_grad=False)
    warm(block)


def test_other_back_ends_and_precisions(block, counted):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(before)  # which says of TF32 what was not said before
    warm(block)
    del counted[:]
    try:
        for name in ("plain", "chunked"):
            with backend(name):
                results(block, *structure(block, 1))
        torch.set_float32_matmul_precision("high")
        results(block, *structure(block, 1))
    finally:
        torch.set_float32_matmul_precision(before)
    assert not counted
    results(block, *structure(block, 1))
    assert counted
    with backend("plain"):
        warm(block)
        x, positions, batch, num_graphs = structure(block, 1)
        out = block(x, positions, batch, num_graphs).square().sum()
    for _ in range(3):  # as it began
        (out,) = torch.autograd.grad(out, positions, create_graph=True)
        out = out.square().sum()


def test_what_is_not_recorded(block, monkeypatch, counted):
    def calls(run=None):
        for _ in range(replay.CALLS + 3):
            run() if run else results(block, *structure(block, 0))
        return len(recorded(block))

    block.requires_grad_(True)
    assert calls() == 0
    block.requires_grad_(False)
    hook = block.attention.register_forward_hook(lambda *given: None)
    assert calls() == 0
    hook.remove()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *given: None)
    assert calls() == 0
    hook.remove()
    monkeypatch.setenv(replay.VARIABLE, "0")
    assert calls() == 0
    monkeypatch.setenv(replay.VARIABLE, "no")
    with pytest.raises(EFAError, match="EFA_ADDONS_CUDA_GRAPHS 'no'; known: 0, 1"):
        calls()
    monkeypatch.delenv(replay.VARIABLE)
    with monkeypatch.context() as older_torch:  # than 2.8
        older_torch.setattr(replay, "_saved_tensors_hooks", None)
        assert calls() == 0
    monkeypatch.setattr(replay, "_MOST_ATOMS", 8)
    assert calls() == 0
    monkeypatch.setattr(replay, "_MOST_ATOMS", 9)
    with torch.inference_mode():
        assert calls(lambda: block(*(part.detach() if torch.is_tensor(part) else part for part in structure(block, 0)))) == 0
    with torch.autocast(next(block.parameters()).device.type, dtype=torch.bfloat16):
        assert calls() == 0
    assert calls() == 1

    del counted[:]
    seen = []
    hook = block.attention.register_forward_hook(lambda *given: seen.append(1))
    results(block, *structure(block, 0))
    hook.remove()
    assert seen == [1] and not counted


def test_training_does_not_look_at_every_weight(block, monkeypatch):
    looked, hold = [], replay._Replays.hold
    monkeypatch.setattr(replay._Replays, "hold", lambda replays: (looked.append(1), hold(replays))[1])
    block.requires_grad_(True)
    for _ in range(5):
        results(block, *structure(block, 0))
    assert len(looked) == 1
    block.requires_grad_(False)
    warm(block)


def test_traces_hold_no_recording(block, counted):
    """They would repeat one result for ever: a recorded block is refused as others are."""
    warm(block)
    x, positions, batch, _ = (part.detach() if torch.is_tensor(part) else part for part in structure(block, 1))
    del counted[:]
    with pytest.raises(EFAError, match="torch.jit.trace"):
        torch.jit.trace(lambda x, r: block(x, r, batch, 2), (x, positions), check_trace=False)
    assert not counted


def test_kinds_that_take_turns_are_not_recorded_over_and_over(block, monkeypatch):
    made = []
    monkeypatch.setattr(replay, "_recorded", lambda *given, make=replay._recorded: (made.append(1), make(*given))[1])
    kinds = range(5, 5 + replay._KEPT + 1)
    for _ in range(3 * replay.CALLS):
        for num_atoms in kinds:
            results(block, *structure(block, 0, num_atoms=num_atoms))
    assert len(made) == len(kinds) and len(recorded(block)) == replay._KEPT


def test_a_failure_is_a_warning_and_computed(block, monkeypatch):
    def fails(*given):
        raise RuntimeError("no capture here")

    monkeypatch.setattr(replay, "_Graph", fails)
    for _ in range(replay.CALLS):
        results(block, *structure(block, 0))
    given = structure(block, 1)
    with pytest.warns(EFAWarning, match="not recorded as a CUDA graph .RuntimeError: no capture here"):
        found = results(block, *given)
    same(found, results(block, *given, block.residual))
    same(results(block, *given), found)  # and not tried again


@gpu
def test_a_capture_that_is_broken_off(randomized, monkeypatch):
    """By an operation that waits: random numbers and other recordings go on, and nothing more is recorded."""
    monkeypatch.setattr(replay, "_broken", [])
    first, second = (randomized(EFABlock(IRREPS, IRREPS, CONFIG)).cuda().eval().requires_grad_(False) for _ in range(2))
    warm(first)
    residual = second.residual
    monkeypatch.setattr(second, "residual", lambda *given: residual(*given) * residual(*given).sum().sign().abs().item())
    with pytest.warns(EFAWarning, match="not recorded as a CUDA graph"):
        for _ in range(replay.CALLS + 1):
            results(second, *structure(second, 0))
    assert torch.rand(3, device="cuda").shape == (3,)
    given = structure(first, 1)
    same(results(first, *given), results(first, *given, first.residual))
    for _ in range(2 * replay.CALLS):
        results(first, *structure(first, 0, num_atoms=11))
    assert len(recorded(first)) == 1


class _Captures:
    """Stand for torch.cuda.CUDAGraph and torch.cuda.graph."""

    ended: list[bool] = []

    def __init__(self, *given, **named):
        pass

    def pool(self):
        raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")

    def __enter__(self):
        self.ended.append(False)

    def __exit__(self, *error):
        if len(self.ended) == 1:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.ended[-1] = True


def test_after_a_capture_that_is_broken_off_another_one_ends(monkeypatch):
    """Which is what torch's generator waits for."""
    monkeypatch.setattr(replay, "_broken", [])
    monkeypatch.setattr(_Captures, "ended", [])
    for name in ("CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, _Captures)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    with pytest.raises(RuntimeError, match="previous error during capture"):
        replay._Graph(lambda: None, torch.device("cpu"))
    assert _Captures.ended == [False, True] and len(replay._broken) == 1


@pytest.mark.parametrize("broken", [False, True], ids=["captured", "broken off"])
def test_what_cublas_works_in_goes_with_a_recording(monkeypatch, broken):
    """Nothing of the memory that torch keeps for a stream is captured, and nothing captured is kept for it."""
    monkeypatch.setattr(replay, "_broken", [])
    monkeypatch.setattr(_Captures, "ended", [] if broken else [True])
    for name in ("CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, _Captures)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    kept, captured = ["of others"], []
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", kept.clear, raising=False)
    with pytest.raises(RuntimeError) if broken else contextlib.nullcontext():
        replay._Graph(lambda: (captured.extend(kept), kept.append("captured")), torch.device("cpu"))
    assert kept == captured == []


def test_recordings_are_for_cuda_only(monkeypatch):
    assert replay.wanted()
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not replay.wanted()


def test_after_a_capture_that_is_broken_off_nothing_is_recorded(block, counted, monkeypatch):
    warm(block)
    monkeypatch.setattr(replay, "_broken", [object()])
    for _ in range(2 * replay.CALLS):
        results(block, *structure(block, 0, num_atoms=11))
    assert len(recorded(block)) == 1
    before = len(counted)
    results(block, *structure(block, 0))
    assert len(counted) == before + 1  # what was recorded goes on


def test_copies_and_pickles_have_their_own(block):
    warm(block)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert not recorded(other)
        with torch.no_grad():
            other.out.weight.mul_(2.0)
        given = structure(block, 1)
        same(results(other, *given), results(other, *given, other.residual))


def test_calls_that_are_counted_do_not_keep_a_block(block, randomized):
    other = randomized(EFABlock(IRREPS, IRREPS, CONFIG)).to(next(block.parameters()).device).requires_grad_(False)
    with torch.no_grad():
        other(*structure(other, 0))
    assert other in replay._of
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None


@gpu
def test_recordings_go_with_their_block(randomized):
    block = randomized(EFABlock(IRREPS, IRREPS, CONFIG)).cuda().eval().requires_grad_(False)
    warm(block)
    gone = weakref.ref(block)
    del block
    gc.collect()
    assert gone() is None


def test_widths_are_still_watched(block, monkeypatch):
    warm(block)
    watched, watch = [], block.attention.watch
    monkeypatch.setattr(block.attention, "watch", lambda *given: (watched.append(1), watch(*given)))
    x, positions, batch, num_graphs = structure(block, 1)
    with pytest.warns(EFAWarning, match="wide, EFA was set up for max_length=20.00"):
        for _ in range(40):
            block(x, 20 * positions, batch, num_graphs)
            if positions.is_cuda:
                torch.cuda.synchronize()
    assert len(watched) == 40


def test_threads(block):
    """Take turns."""
    warm(block)
    expected = {seed: [part.detach() for part in results(block, *structure(block, seed), block.residual)] for seed in (1, 2)}
    failed = []

    def work(seed):
        try:
            for _ in range(30):
                same([part.detach() for part in results(block, *structure(block, seed))], expected[seed])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.mark.skipif(interpreted(), reason="needs no kernels")
def test_nothing_on_a_cpu(randomized):
    block = randomized(EFABlock(IRREPS, IRREPS, CONFIG)).eval().requires_grad_(False)
    for _ in range(replay.CALLS + 2):
        results(block, *structure(block, 0))
    assert not recorded(block)
