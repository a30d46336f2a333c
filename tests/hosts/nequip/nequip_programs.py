"""NequIP's programs, as their users run them: in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from nequip.model import ModelFromCheckpoint, ModelFromPackage
from nequip.utils.global_state import set_global_state

ROOT = Path(__file__).parents[3]
QUICK = ["trainer.max_epochs=2", "++trainer.enable_progress_bar=false", "++trainer.enable_model_summary=false"]
SMALL = [
    "training_module.model.num_features=4",
    "training_module.model.radial_mlp_width=8",
    "training_module.model.num_layers=2",
]


def run(*command: str, cwd: Path, check: bool = True, **environment: str) -> str:
    """Output and errors of a command of this environment."""
    program = Path(sys.executable).parent / command[0]
    env = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}
    done = subprocess.run([str(program), *command[1:]], cwd=cwd, env=env, capture_output=True, text=True)
    text = done.stdout + done.stderr
    assert not check or done.returncode == 0, text[-4000:]
    return text


def train(
    workspace: Path, name: str, config: str, *overrides: str, check: bool = True, configs: Path = ROOT / "configs" / "nequip"
) -> tuple[Path, str]:
    """Runs a shipped configuration; returns the folder of the run and what it printed."""
    folder = workspace / name
    command = ["nequip-train", "-cp", str(configs), "-cn", config, f"hydra.run.dir={folder}"]
    text = run(*command, f"data_file={workspace / 'train.xyz'}", *QUICK, *overrides, cwd=workspace, check=check)
    return folder, text


def saved(path: Path) -> torch.nn.Module:
    """The model in a checkpoint or a package."""
    set_global_state(allow_tf32=False)
    model = (ModelFromPackage if path.suffix == ".zip" else ModelFromCheckpoint)(str(path))
    return (next(iter(model.values())) if isinstance(model, torch.nn.ModuleDict) else model).eval()


def randomize_checkpoint(path: Path, size: float = 0.3) -> None:
    """Random weights in the EFA blocks of a checkpoint (without a moving average)."""
    content = torch.load(path, weights_only=False)
    generator = torch.Generator().manual_seed(0)
    for name, value in content["state_dict"].items():
        if ".efa." in name:
            value.copy_(size * torch.randn(value.shape, generator=generator, dtype=torch.float64))
    torch.save(content, path)
