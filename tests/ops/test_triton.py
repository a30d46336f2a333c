"""Triton's kernels: interpreted, compiled for cards that are not here, and on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from efa_addons import EuclideanFastAttention
from efa_addons.ops.backends import backend, interpreted

pytest.importorskip("triton", reason="needs triton")
FOLDER = Path(__file__).parent
gpu = pytest.mark.skipif(not torch.cuda.is_available() or interpreted(), reason="needs a GPU")


def test_interpreted():
    """In a process of its own, as triton is imported for one or the other."""
    command = [sys.executable, "-m", "pytest", "-q", str(FOLDER / "interpreted"), "-p", "no:cacheprovider"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.parametrize("capability", [80, pytest.param(90, marks=pytest.mark.slow)])
@pytest.mark.parametrize("second", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["first", "second"])
def test_they_compile(capability, second):
    """The interpreter takes what the compiler refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(FOLDER / "compile_kernels.py"), str(capability), str(int(second))]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["state", "read_out", "pull"]


def case(num_atoms=500, dtype=torch.float32, degree=0, device="cuda"):
    """A module, and x, positions, batch of three graphs, one of them empty."""
    torch.manual_seed(0)
    coupled = {"tensor_integration": True, "ti_max_degree_sph": 2, "ti_max_degree": 1} if degree else {}
    module = EuclideanFastAttention(16, degree, max_length=15.0, method="quadrature", **coupled).to(device, dtype)
    x = torch.randn(num_atoms, 1, (degree + 1) ** 2, 16, dtype=torch.float64)
    positions = 3 * torch.randn(num_atoms, 3, dtype=torch.float64)
    batch = 2 * (torch.arange(num_atoms) > num_atoms // 3).long()
    return module, x.to(device, dtype), positions.to(device, dtype), batch.to(device)


def derivatives(module, x, positions, batch):
    """Output, forces, and the gradient of a loss of both by the weights."""
    r = positions.clone().requires_grad_()
    out = module(x, r, batch, 3)
    (forces,) = torch.autograd.grad(out.square().sum(), [r], create_graph=True)
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [out, forces, *torch.autograd.grad(out.square().sum() + forces.square().sum(), weights)]


@gpu
@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("num_atoms", [1, 37, 5000])
def test_training_step_on_a_gpu(num_atoms, degree):
    with backend("chunked"):
        expected = derivatives(*case(num_atoms, torch.float64, degree))
    with backend("triton"):
        found = derivatives(*case(num_atoms, torch.float32, degree))
    for value, reference in zip(found, expected, strict=True):
        assert (value - reference).norm() <= 1e-4 * reference.norm() + 1e-6


@gpu
def test_nothing_waits_for_the_device():
    arguments = case()
    with backend("triton"):
        derivatives(*arguments)  # compiled, and tables made
        torch.cuda.set_sync_debug_mode("error")
        try:
            derivatives(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@gpu
def test_cuda_graphs():
    module, x, positions, batch = case()
    with backend("triton"):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                derivatives(module, x, positions, batch)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = derivatives(module, x, positions, batch)
        positions.mul_(1.1)
        graph.replay()
        replayed = [value.clone() for value in out]
        for value, reference in zip(replayed, derivatives(module, x, positions, batch), strict=True):
            torch.testing.assert_close(value, reference)


@gpu
def test_torch_compile():
    module, x, positions, batch = case()
    with backend("triton"), torch.no_grad():
        compiled = torch.compile(lambda x, r: module(x, r, batch, 3), fullgraph=True)
        torch.testing.assert_close(compiled(x, positions), module(x, positions, batch, 3))


@gpu
def test_two_runs_are_the_same():
    with backend("triton"):
        first, second = (derivatives(*case()) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
