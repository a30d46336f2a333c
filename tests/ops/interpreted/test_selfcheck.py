"""auto takes kernels that have passed their check on a device, here on the CPU, and tells once why it does not take others."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from efa_addons import EFAError, EFAWarning
from efa_addons.doctor import checks
from efa_addons.ops import backends, parts, selfcheck, triton_kernels, triton_waves, waves
from efa_addons.ops.backends import Kind, backend, kernels

CPU = torch.device("cpu")
KINDS = [Kind(CPU, torch.float32, second, mixed) for second in (False, True) for mixed in (False, True)]
FIRST, SECOND = KINDS[0], KINDS[2]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """auto considers kernels on the CPU, and has checked none."""
    monkeypatch.setattr(backends, "_AUTO_ON", ("cuda", "cpu"))
    monkeypatch.setattr(backends, "_found", {})
    monkeypatch.setattr(backends, "_chosen", "auto")


@pytest.fixture
def small(monkeypatch):
    """A problem that the interpreter is through with in a moment."""
    for name, size in {"_ATOMS": 3, "_VALUES": 2, "_WIDE": 1, "_CHANNELS": 1, "_POINTS": 6}.items():
        monkeypatch.setattr(selfcheck, name, size)


@pytest.fixture
def broken(monkeypatch):
    """A sine of the wrong sign."""
    right = triton_kernels.cos_sin

    def wrong(phase, turned, precision):
        cos, sin = right(phase, turned, precision)
        return cos, -sin

    monkeypatch.setattr(triton_kernels, "cos_sin", wrong)


def sums():
    """Arguments of all sums, in float32, and directions."""
    arguments, described, along = selfcheck._problem(CPU, torch.float32, False, selfcheck._VALUES)
    return [*arguments, described], along


@pytest.mark.parametrize("kind", [FIRST, SECOND], ids=str)
def test_kernels_pass_with_tiles_of_full_size(kind, monkeypatch):
    found, launch = set(), triton_waves._Sums.launch

    def seen(sums, name, grid, phases, *arguments, **constants):
        found.add((name, sums.tile_of_atoms(name), phases, constants["VALUES"]))
        launch(sums, name, grid, phases, *arguments, **constants)

    monkeypatch.setattr(triton_waves._Sums, "launch", seen)
    assert selfcheck.largest_error(triton_waves, CPU, *kind[2:]) < 2e-6
    large, tiles, wide = max(triton_waves._PHASES), triton_waves._TILES, triton_waves._WIDE[""]
    phases = {"state": 2 * large, "read_out": large, "pull": large}
    expected = {(name, tiles[name][""].atoms, phases[name], triton_waves._VALUES) for name in tiles}
    assert found == expected | {("read_out", wide.atoms, wide.phases, triton_waves._READ_VALUES)}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kernels_pass(kind, small):
    reason, error = backends.check(kind)
    assert reason == "" and error < 2e-6 and kernels(kind) is triton_waves


def test_checked_once(small, monkeypatch):
    calls, check = [], selfcheck.largest_error
    monkeypatch.setattr(selfcheck, "largest_error", lambda *which: calls.append(which[2:]) or check(*which))
    for kind in (FIRST, FIRST, SECOND, FIRST, SECOND):
        assert kernels(kind) is triton_waves
    assert calls == [(False, False), (True, False)]
    assert kernels(Kind(CPU, torch.float64, False, False)) is None and len(calls) == 2


def test_wrong_numbers_warn_once_and_torch_serves(small, broken):
    arguments, along = sums()
    needed = [True] * 5
    with pytest.warns(EFAWarning, match="not used on cpu for values and first derivatives: their sums differ"):
        found = waves.partials(*arguments, needed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = waves.partials(*arguments, needed)
    expected = parts.partials(*arguments, needed)
    for value, other, reference in zip(found, again, expected, strict=True):
        assert torch.equal(value, reference) and torch.equal(other, reference)
    with pytest.warns(EFAWarning, match="for second derivatives: their sums differ from torch's by .* where 1e-05 is allowed"):
        assert torch.equal(
            waves.second_partials(*arguments, along, needed)[2], parts.second_partials(*arguments, along, needed)[2]
        )


def test_no_numbers_are_wrong_numbers(small, monkeypatch):
    monkeypatch.setattr(triton_kernels, "cos_sin", lambda phase, *_: (phase * float("nan"), phase))
    with pytest.warns(EFAWarning, match="differ from torch's by inf, where 1e-05 is allowed"):
        assert kernels(FIRST) is None


def test_what_the_compiler_says_is_told(small, monkeypatch):
    def refuse(*arguments):
        raise RuntimeError("\nptxas: no such card\nmore")

    monkeypatch.setattr(triton_waves, "partials", refuse)
    message = (
        "they failed with RuntimeError: ptxas: no such card. Torch carries .* EFA_ADDONS_BACKEND=triton takes them unchecked"
    )
    with pytest.warns(EFAWarning, match=message):
        assert kernels(FIRST) is None
    assert "ptxas: no such card" in backends.served_by(CPU, torch.float32)[1]
    arguments, _ = sums()
    with backend("triton"), pytest.raises(RuntimeError, match="ptxas"):
        waves.partials(*arguments, [True] * 5)


def test_failure_at_a_later_shape(small, monkeypatch):
    """Too large for the card, say: torch serves from then on."""
    arguments, along = sums()
    assert kernels(FIRST) is triton_waves and kernels(SECOND) is triton_waves
    for name in ("partials", "second_partials"):
        monkeypatch.setattr(triton_waves, name, lambda *_: 1 / 0)
    for given, kind in (((), FIRST), ((along,), SECOND)):
        name = "second_partials" if given else "partials"
        with pytest.warns(EFAWarning, match="they failed with ZeroDivisionError: division by zero. Torch"):
            found = getattr(waves, name)(*arguments, *given, [True] * 5)
        assert torch.equal(found[0], getattr(parts, name)(*arguments, *given, [True] * 5)[0])
        assert kernels(kind) is None


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), EFAError("bad input")], ids=["memory", "input"])
def test_what_is_not_the_kernels_fault(small, error, monkeypatch):
    def fail(*arguments):
        raise error

    arguments, _ = sums()
    assert kernels(FIRST) is triton_waves
    monkeypatch.setattr(triton_waves, "partials", fail)
    with pytest.raises(type(error)):
        waves.partials(*arguments, [True] * 5)
    assert backends._found == {(FIRST, "ieee"): ""}


def test_no_memory_for_the_check(small, monkeypatch):
    """Asked again when there is some."""
    with monkeypatch.context() as patch:
        patch.setattr(selfcheck, "_problem", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        assert kernels(FIRST) is None
    assert kernels(FIRST) is triton_waves


class Mode(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def test_not_in_a_mode_of_torch(small):
    with Mode():
        assert kernels(FIRST) is None and not backends._found
    assert kernels(FIRST) is triton_waves
    with Mode():
        assert kernels(FIRST) is triton_waves


def test_whatever_is_set_around_it(small):
    """The check leaves random numbers alone, and is the same in every mode of the caller's."""
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert kernels(FIRST) is triton_waves
        with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
            assert kernels(SECOND) is triton_waves
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(state, torch.get_rng_state())


def test_each_precision_is_checked(small, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(selfcheck, "largest_error", lambda *which: 2e-5)
        with pytest.warns(EFAWarning):
            assert kernels(FIRST) is None
    monkeypatch.setenv("EFA_ADDONS_PRECISION", "tf32")
    assert kernels(FIRST) is triton_waves and kernels(FIRST) is triton_waves
    monkeypatch.setenv("EFA_ADDONS_PRECISION", "ieee")
    assert kernels(FIRST) is None


def test_doctor_tells(small, monkeypatch):
    lines = checks(CPU)
    assert lines[0] == "check of triton's kernels on cpu, relative errors:" and len(lines) == 5
    assert all(float(line.split(": ")[1]) < 2e-6 for line in lines[1:])
    monkeypatch.setattr(triton_waves, "second_partials", lambda *_: 1 / 0)
    assert checks(CPU)[2] == "  second derivatives: they failed with ZeroDivisionError: division by zero"

    def is_full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(triton_waves, "second_partials", is_full)
    assert checks(CPU)[2] == "  second derivatives: no memory for the check"
