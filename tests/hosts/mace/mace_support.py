"""Helpers of the MACE tests."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import torch
from host_support import fill

from efa_addons.hosts.mace import probe
from efa_addons.hosts.mace.insert import efa_parameters

FLAGS = (
    "--valid_fraction 0.25 --E0s average --energy_key REF_energy --forces_key REF_forces --model ScaleShiftMACE "
    "--hidden_irreps 4x0e+4x1o --r_max 2.0 --max_ell 2 --correlation 2 --radial_MLP [8] --batch_size 4 --max_num_epochs 1 "
    "--seed 3 --plot False --lr 0.01 --eval_interval 1"
).split()
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
    fill(efa_parameters(model).values(), size, seed)
    return model
