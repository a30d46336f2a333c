"""Which back end takes a call, and what those that cannot say."""

import importlib
import importlib.util
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from efa_addons import EFAError, EFAWarning
from efa_addons.cli import main
from efa_addons.ops import backends, parts, waves
from efa_addons.ops.backends import Kind, backend, kernels, precision, served_by, why_not_triton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SINGLE, DOUBLE = torch.float32, torch.float64


@pytest.fixture
def installed(monkeypatch):
    """installed(True or False): whether a package triton is found."""

    def choose(found):
        why_not_triton.cache_clear()
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if found else None)

    monkeypatch.setattr(backends, "_chosen", "auto")
    monkeypatch.setattr(backends, "_TRITON", (0,))
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield choose
    why_not_triton.cache_clear()


@pytest.fixture
def on_a_gpu(installed, monkeypatch):
    """As if a GPU were here whose kernels the check finds right; what it was asked for."""
    asked = []
    monkeypatch.setattr(backends, "_found", {})
    monkeypatch.setattr(backends, "check", lambda kind: asked.append(kind) or ("", 1e-7))
    monkeypatch.setattr(importlib, "import_module", lambda name: name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    installed(True)
    return asked


def test_auto(on_a_gpu, installed):
    kind = Kind(CUDA, SINGLE, False, False)
    assert kernels(kind) == kernels(kind) == "efa_addons.ops.triton_waves" and on_a_gpu == [kind]
    assert served_by(CUDA, SINGLE) == ("triton", "its kernels have passed their check on this device")
    assert served_by(CUDA, DOUBLE)[0] == "chunked" and "float64" in served_by(CUDA, DOUBLE)[1]
    assert kernels(kind._replace(dtype=DOUBLE)) is None
    assert served_by(CPU, SINGLE)[0] == "chunked" and kernels(kind._replace(device=CPU)) is None
    assert served_by(CUDA, SINGLE, traced=True)[0] == "plain"
    assert on_a_gpu == [kind]
    installed(False)
    assert served_by(CUDA, SINGLE) == ("chunked", "the package triton is not installed") and kernels(kind) is None


def test_structures_too_large_for_the_kernels(on_a_gpu, monkeypatch):
    kind = Kind(CUDA, SINGLE, False, False)
    assert kernels(kind, 2**31 - 1) and kernels(kind, 2**31) is None
    with backend("triton"), pytest.raises(EFAError, match="channels times atoms in 32 bits, and there are 2.1e.09; leave it"):
        kernels(kind, 2**31)
    asked: list[int] = []
    monkeypatch.setattr(waves, "kernels", lambda kind, num_features: asked.append(num_features))
    x, described = torch.zeros(1).expand(2, 3, 2**11, 2**20), SimpleNamespace(weights=None)
    for name, along in (("partials", []), ("second_partials", [()])):
        monkeypatch.setattr(parts, name, lambda *_: "by torch")
        assert getattr(waves, name)(x, None, x, x, None, described, *along, [True] * 5) == "by torch"
    assert asked == [2**31, 2**31]


def test_auto_where_the_check_finds_them_wrong(on_a_gpu, monkeypatch):
    monkeypatch.setattr(backends, "check", lambda kind: ("they are wrong", 1.0))
    kind = Kind(CUDA, SINGLE, False, False)
    with pytest.warns(EFAWarning, match="not used on cuda for values and first derivatives: they are wrong"):
        assert kernels(kind) is None
    assert kernels(kind) is None  # without a word: warnings are errors here
    assert served_by(CUDA, SINGLE) == ("chunked", "they are wrong")


def test_nothing_is_checked_while_a_graph_is_captured(on_a_gpu, monkeypatch):
    kind = Kind(CUDA, SINGLE, True, False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert kernels(kind) is None and on_a_gpu == []
    assert kernels(kind) and on_a_gpu == [kind]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: 1 / 0)  # and nothing is asked any more
    assert kernels(kind)


def test_tensors_without_memory_are_not_for_kernels(on_a_gpu):
    """Also after the check has passed: what fails on them would be given up for good."""
    with backend("auto"):
        assert kernels(Kind(CUDA, SINGLE, False, False)) is not None
        with FakeTensorMode():
            assert kernels(Kind(CUDA, SINGLE, False, False)) is None


@pytest.mark.parametrize("package", ["triton", "pytorch-triton"])
def test_a_triton_that_is_too_old(installed, monkeypatch, package):
    """As torch 2.5 brings it: no kernels, and no warning that they failed."""

    def version(name, has="3.1.0"):
        if name != package:
            raise metadata.PackageNotFoundError
        return has

    installed(True)
    monkeypatch.setattr(backends, "_TRITON", (3, 4))
    monkeypatch.setattr(metadata, "version", version)
    assert why_not_triton(CUDA, SINGLE) == "triton 3.1.0 is installed, and its kernels need 3.4 or later"
    assert served_by(CUDA, SINGLE)[0] == "chunked" and kernels(Kind(CUDA, SINGLE, False, False)) is None
    for newer in ("3.4.0", "3.10.0+git1234", "4.0"):
        why_not_triton.cache_clear()
        monkeypatch.setattr(metadata, "version", lambda name, has=newer: version(name, has))
        assert why_not_triton(CUDA, SINGLE) == ""


def test_auto_without_a_gpu(installed):
    installed(True)
    assert served_by(CUDA, SINGLE) == ("triton", "once its kernels have passed their check there; no such device is here")


def test_pinned(installed):
    installed(True)
    for name in ("chunked", "plain"):
        with backend(name):
            assert served_by(CUDA, SINGLE)[0] == name and kernels(Kind(CUDA, SINGLE, False, False)) is None
    with backend("triton"):
        assert served_by(CUDA, SINGLE)[0] == "triton"


@pytest.mark.parametrize(
    ("found", "device", "dtype", "reason"),
    [
        (False, CPU, SINGLE, "the package triton is not installed"),
        (True, CUDA, DOUBLE, "its kernels are in float32, and the tensors in float64"),
        (True, CPU, SINGLE, "its kernels run on NVIDIA devices, and the tensors are on 'cpu'"),
    ],
)
def test_pinned_where_it_cannot_serve(installed, found, device, dtype, reason):
    installed(found)
    with backend("triton"):
        with pytest.raises(EFAError, match=f"EFA_ADDONS_BACKEND=triton cannot serve this call: {reason}"):
            kernels(Kind(device, dtype, False, False))
        assert reason in served_by(device, dtype)[1]


def test_precision(monkeypatch):
    monkeypatch.delenv("EFA_ADDONS_PRECISION", raising=False)
    assert precision() == "tf32x3"
    monkeypatch.setenv("EFA_ADDONS_PRECISION", "tf23")
    with pytest.raises(EFAError, match="unknown EFA_ADDONS_PRECISION 'tf23'"):
        precision()


def test_doctor(installed, capsys):
    installed(True)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["torch", metadata.version("torch")] for line in lines)
    for call in ("cpu, float32 chunked:", "cuda, float32 triton:", "cuda, float64 chunked:", "in traces plain:"):
        assert any(" ".join(line.split()).startswith(call) for line in lines)


def test_attention_on_a_cpu_leaves_triton_alone():
    """Torch may import triton by itself."""
    program = """
import sys, torch
from efa_addons import EuclideanFastAttention
from efa_addons.doctor import report
module = EuclideanFastAttention(4, 0, max_length=5.0, method="quadrature")
module(torch.randn(3, 1, 1, 4), torch.randn(3, 3), torch.zeros(3, dtype=torch.long), 1).sum().backward()
report()
print([name for name in sys.modules if "efa_addons.ops.triton" in name])
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["[]"]
