"""Helpers of the tests of all hosts. Not in tests/hosts: from there the folder `mace` would pass for a package of that name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.lj import LennardJones

from efa_addons.studies.hosts import script

ROOT = Path(__file__).parents[1]


def run(*command: str, cwd: Path, check: bool = True, **environment: str) -> str:
    """Output and errors of a command of this environment."""
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "PWD": str(cwd), **environment}
    done = subprocess.run([script(command[0]), *command[1:]], cwd=cwd, env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert not check or done.returncode == 0, text[-4000:]
    return text


def fresh_process(code: str, cwd: Path) -> str:
    """Standard output of Python code in a process of its own."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def labelled_ethanols(count: int) -> list[Atoms]:
    """Rattled ethanols without a cell, with a calculator that has computed a Lennard-Jones potential."""
    structures = []
    for i in range(count):
        atoms = molecule("CH3CH2OH")
        atoms.rattle(0.05, seed=i)
        atoms.calc = LennardJones(sigma=1.0, epsilon=0.05, rc=20.0)
        atoms.get_potential_energy(), atoms.get_forces()
        structures.append(atoms)
    return structures


def fill(parameters: Iterable[torch.Tensor], size: float, seed: int) -> None:
    """Random numbers, the same in every precision, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
