"""Helpers of the MACE tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from efa_addons.hosts.mace import probe
from efa_addons.hosts.mace.insert import efa_parameters

SMALL = ("--efa_num_features_qk", "4", "--efa_num_features_v", "4", "--efa_mlp_features", "8")


def records(folder: Path) -> list[dict]:
    """What MACE logged of a run, line by line: losses of the steps and errors of the evaluations."""
    return [json.loads(line) for path in folder.glob("results/*_train.txt") for line in path.read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [record["loss"] for record in records(folder)]


def split(workspace: Path, name: str, *parts: slice) -> list[str]:
    """Files with parts of the training structures."""
    structures = ase.io.read(workspace / "train.xyz", ":")
    paths = [workspace / f"{name}_{i}.xyz" for i in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        ase.io.write(path, structures[part])
    return [str(path) for path in paths]


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
