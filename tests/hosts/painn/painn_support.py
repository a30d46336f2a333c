"""Helpers of the PaiNN tests: SchNetPack's commands, run as their users run them."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[3]
QUICK = (
    "trainer.max_epochs=2 trainer.accelerator=cpu ++trainer.enable_progress_bar=false logger=csv print_config=false "
    "globals.cutoff=2.0 data.batch_size=4"
).split()
SMALL = ["model.representation.n_atom_basis=8", "model.representation.n_interactions=2"]


def run(*command: str, cwd: Path, check: bool = True) -> str:
    """Output and errors of a command of this environment."""
    program = Path(sys.executable).parent / command[0]
    env = {**os.environ, "PYTHONWARNINGS": "ignore", "HYDRA_FULL_ERROR": "1"}
    done = subprocess.run([str(program), *command[1:]], cwd=cwd, env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert not check or done.returncode == 0, text[-4000:]
    return text


def train(
    workspace: Path, name: str, experiment: str, *overrides: str, check: bool = True, configs: Path = ROOT / "configs" / "painn"
) -> tuple[Path, str]:
    """Runs a shipped experiment; returns the folder of the run and what it printed."""
    command = ["spktrain", f"--config-dir={configs}", f"experiment={experiment}", f"data.datapath={workspace / 'train.db'}"]
    text = run(*command, f"run.id={name}", *QUICK, *overrides, cwd=workspace, check=check)
    return workspace / "runs" / name, text


def metrics(folder: Path) -> list[dict[str, str]]:
    """What SchNetPack's CSV logger wrote, row by row."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def final_errors(folder: Path) -> dict[str, str]:
    """The metrics of the final test, digit by digit."""
    return {name: value for row in metrics(folder) for name, value in row.items() if name.startswith("test_") and value}


def parameters(path: Path) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in torch.load(path, weights_only=False).named_parameters()}
