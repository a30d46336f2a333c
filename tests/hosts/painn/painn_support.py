"""Helpers of the PaiNN tests: SchNetPack's commands, run as their users run them."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from host_support import ROOT, run

QUICK = (
    "trainer.max_epochs=2 trainer.accelerator=cpu ++trainer.enable_progress_bar=false logger=csv print_config=false "
    "globals.cutoff=2.0 data.batch_size=4"
).split()
SMALL = ["model.representation.n_atom_basis=8", "model.representation.n_interactions=2"]


def train(
    workspace: Path, name: str, experiment: str, *overrides: str, check: bool = True, configs: Path = ROOT / "configs" / "painn"
) -> tuple[Path, str]:
    """Runs a shipped experiment; returns the folder of the run and what it printed."""
    command = ["spktrain", f"--config-dir={configs}", f"experiment={experiment}", f"data.datapath={workspace / 'train.db'}"]
    overrides = (f"run.id={name}", *QUICK, *overrides)
    text = run(*command, *overrides, cwd=workspace, check=check, HYDRA_FULL_ERROR="1")
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
