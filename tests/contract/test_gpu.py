"""Every host on a GPU: what it computes there, and that EFA makes nothing wait.

Without a GPU, what it computes with the kernels in Triton's interpreter: TRITON_INTERPRET=1 pytest tests/contract/test_gpu.py
"""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec

import pytest
import torch
from ase.build import molecule
from gpu_support import KERNELS_RUN_ON, gpu, kernels, run_interpreted, waits
from test_contract import ATTENDING, CONFIGS, SMALL, ethanol

from efa_addons import EFAError
from efa_addons.ops.backends import backend, interpreted

STRUCTURES = [ethanol(), molecule("H2O"), molecule("CH3OH")]
SINGLE = torch.float32


def step(host, model, batch):
    """Energies, forces, and the gradients of a loss of both by the weights of EFA."""
    out = host.compute(model, dict(batch), training=True)
    weights = list(host.adapter.efa_parameters(model).values())
    loss = out.energy.square().sum() + out.forces.square().sum()
    return [out.energy, out.forces, *torch.autograd.grad(loss, weights or list(model.parameters()), allow_unused=True)]


@kernels
@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("taken", ["auto", "triton", "chunked"])
def test_a_training_step(host, name, taken):
    model = host.with_efa(CONFIGS[name].replace(method="quadrature"), SINGLE)
    expected = step(host, model, host.batch(model, STRUCTURES))
    there = deepcopy(model).to(KERNELS_RUN_ON)
    with backend(taken):
        found = step(host, there, host.batch(there, STRUCTURES))
    for value, reference in zip(found, expected, strict=True):
        assert (value.cpu() - reference).norm() <= 1e-3 * reference.norm() + 1e-6


@pytest.mark.skipif(find_spec("triton") is None or interpreted(), reason="needs triton")
def test_a_training_step_with_interpreted_kernels(host):
    """The smallest."""
    assert "1 passed" in run_interpreted(__file__, "-k", "triton and layer")


@gpu
@pytest.mark.parametrize("taken", ["auto", "triton", "chunked"])
def test_efa_makes_nothing_wait(host, taken):
    """A training step waits for the GPU as often as the host alone does."""
    counts = []
    for model in (host.stock(SINGLE), host.with_efa(SMALL, SINGLE)):
        there = deepcopy(model).cuda()
        batch = host.batch(there, STRUCTURES)
        with backend(taken):
            counts.append(waits(lambda there=there, batch=batch: step(host, there, batch)))
    assert counts[1] <= counts[0]


@gpu
def test_a_periodic_structure_is_nan_until_it_is_an_error(host):
    boxed = ethanol()
    boxed.set_cell([4.0, 4.0, 4.0])
    there = deepcopy(host.with_efa(SMALL, SINGLE)).cuda()
    for _ in range(2):  # the first call of a process is waited for
        assert host.compute(there, host.batch(there, [boxed])).energy.isfinite().all()
    boxed.pbc = True
    batch = host.batch(there, [boxed])
    with pytest.raises(EFAError, match="periodic"):
        for _ in range(10):
            assert host.compute(there, dict(batch)).energy.isnan().all()
            torch.cuda.synchronize()
