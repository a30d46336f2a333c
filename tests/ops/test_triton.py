"""Triton's kernels: interpreted, compiled for cards that are not here, and on a GPU where there is one."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from gpu_support import gpu, run_interpreted, waits

from efa_addons import EFAWarning, EuclideanFastAttention
from efa_addons.ops import backends, selfcheck, waves
from efa_addons.ops.backends import Kind, backend, kernels

pytest.importorskip("triton", "3.4", reason="needs triton")
FOLDER = Path(__file__).parent


def test_interpreted():
    printed = run_interpreted(str(FOLDER / "interpreted"))
    assert " passed" in printed and "skipped" not in printed


_SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("capability", "second", "mixed"),
    [
        (80, False, True),
        *(pytest.param(*case, marks=_SLOW) for case in ((80, True, False), (90, False, True), (90, True, False))),
    ],
)
def test_they_compile(capability, second, mixed):
    """The interpreter takes what the compiler refuses."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-W",
        "ignore",
        str(FOLDER / "compile_kernels.py"),
        *(str(int(n)) for n in (capability, second, mixed)),
    ]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["arrange", "state", "read_out", "pull"]


def case(num_atoms=500, dtype=torch.float32, degree=0, device="cuda"):
    """A module, and x, positions, batch of three graphs, one of them empty."""
    torch.manual_seed(0)
    coupled = {"tensor_integration": True, "ti_max_degree_sph": 2, "ti_max_degree": 1} if degree else {}
    module = EuclideanFastAttention(16, degree, max_length=40.0, method="quadrature", **coupled).to(device, dtype)
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
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
def test_auto_takes_what_passes_the_check(second, mixed, monkeypatch):
    monkeypatch.setattr(backends, "_found", {})
    kind = Kind(torch.device("cuda", 0), torch.float32, second, mixed)
    with backend("auto"):
        reason, error = backends.check(kind)
        assert reason == "" and error <= selfcheck.LIMITS[backends.precision()]
        assert kernels(kind).__name__ == "efa_addons.ops.triton_waves"


@gpu
@pytest.mark.parametrize("degree", [0, 1])
@pytest.mark.parametrize("taken", ["auto", "triton", "chunked", "plain"])
def test_nothing_waits_for_the_device(taken, degree):
    """In a forward and two backward passes; also not in the calls that measure for a warning (every 16th)."""
    arguments = case(degree=degree)
    with backend(taken):
        assert waits(lambda: [derivatives(*arguments) for _ in range(20)]) == 0


@gpu
def test_waits_are_counted():
    x = torch.ones(3, device="cuda")
    assert waits(lambda: (x.sum().item(), x.cpu(), x + 1)) == 2


@gpu
def test_a_structure_beyond_max_length_is_a_warning_some_calls_later():
    module, x, positions, batch = case()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(x, positions, batch, 3)
    with pytest.warns(EFAWarning, match="is .* Å wide, EFA was set up for max_length=40.00 Å"):
        for _ in range(40):
            module(x, 10 * positions, batch, 3)
            torch.cuda.synchronize()


@gpu
@pytest.mark.parametrize("taken", ["auto", "triton", "chunked", "plain"])
def test_cuda_graphs(taken):
    module, x, positions, batch = case()
    with backend(taken):
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
            assert (value - reference).norm() <= 1e-5 * reference.norm()


@gpu
@pytest.mark.parametrize("taken", ["auto", "triton"])
def test_torch_compile(taken):
    torch.compiler.reset()
    module, x, positions, batch = case()
    with backend(taken), torch.no_grad():
        compiled = torch.compile(lambda x, r: module(x, r, batch, 3), fullgraph=True)
        found, expected = compiled(x, positions), module(x, positions, batch, 3)
    assert (found - expected).norm() <= 1e-5 * expected.norm()


@gpu
@pytest.mark.parametrize("second", [False, True], ids=["first", "second"])
def test_two_runs_of_the_kernels_are_the_same(second):
    arguments, described, along = selfcheck._problem(torch.device("cuda"), torch.float32, False, selfcheck._VALUES)
    with backend("triton"):
        if second:
            runs = [waves.second_partials(*arguments, described, along, [True] * 5) for _ in range(2)]
        else:
            runs = [waves.partials(*arguments, described, [True] * 5) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
