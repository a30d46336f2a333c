"""Helpers of the MACE tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from efa_addons.hosts.mace import probe
from efa_addons.hosts.mace.insert import efa_parameters


def batch_of(model: torch.nn.Module, *structures) -> dict[str, torch.Tensor]:
    return probe.batch_of(model, structures)


def evaluate(model: torch.nn.Module, *structures, **options) -> dict[str, torch.Tensor]:
    return model(batch_of(model, *structures), **options)


def randomize(model: torch.nn.Module, size: float = 0.3, seed: int = 0) -> torch.nn.Module:
    """Random weights in the EFA blocks, so that they say something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in efa_parameters(model).values():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def fresh_process(code: str, cwd: Path) -> str:
    """Standard output of Python code in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rotation(seed: int, improper: bool = False) -> np.ndarray:
    matrix = Rotation.random(random_state=seed).as_matrix()
    return -matrix if improper else matrix
