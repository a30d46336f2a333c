"""Every host with its blocks recorded: the same energies, forces and derivatives by strain as computed ones."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from ase.build import molecule
from gpu_support import gpu, recordings
from test_contract import ATTENDING, CONFIGS, ethanol

from efa_addons.nn import replay

CALLS = replay.CALLS + 2


def moved(atoms, seed):
    atoms = atoms.copy()
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_molecular_dynamics(host, name, device, monkeypatch):
    """Calls with the same atoms elsewhere; others now and then."""
    recordings(monkeypatch, device)
    model = deepcopy(host.with_efa(CONFIGS[name].replace(method="quadrature"), torch.float32)).to(device)
    model.eval().requires_grad_(False)
    blocks = [module for module in model.modules() if type(module).__name__ == "EFABlock"]
    for seed in range(CALLS):
        for structures in ([ethanol(), molecule("H2O")], [molecule("CH3OH")] * (1 + seed % 2)):
            batch = host.batch(model, [moved(atoms, seed) for atoms in structures])
            found = host.compute(model, dict(batch))
            with monkeypatch.context() as patch:
                patch.setenv(replay.VARIABLE, "0")
                expected = host.compute(model, dict(batch))
            for value, reference in zip(found, expected, strict=True):
                assert (value - reference).norm() <= 1e-5 * reference.norm() + 1e-6
    assert blocks and all(block in replay._of and replay._of[block].recordings for block in blocks)


def test_ase_calculator(host, monkeypatch):
    """MACE's, which asks for no gradients of parameters, moves atoms by recordings."""
    calculators = pytest.importorskip("mace.calculators")
    if host.suffix != ".model":
        pytest.skip("another host's model")
    recordings(monkeypatch, "cpu")
    model = deepcopy(host.with_efa(CONFIGS["default"].replace(method="quadrature"), torch.float32)).train()
    calculator = calculators.MACECalculator(models=[model], device="cpu", default_dtype="float32")
    replays, run = [], replay._Recording.output
    monkeypatch.setattr(replay._Recording, "output", lambda *given: (replays.append(1), run(*given))[1])
    found = []
    for value in ("1", "0"):
        monkeypatch.setenv(replay.VARIABLE, value)
        for seed in range(CALLS):
            atoms = moved(ethanol(), seed)
            atoms.calc = calculator
            found.append(torch.from_numpy(atoms.get_forces()))
    assert len(replays) == 2 * 3  # two calls, three layers
    for value, reference in zip(found[:CALLS], found[CALLS:], strict=True):
        assert (value - reference).norm() <= 1e-5 * reference.norm()
