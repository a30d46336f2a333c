"""NequIP's programs, as their users run them: in processes of their own."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml
from host_support import ROOT, fill, run
from nequip.model import ModelFromCheckpoint, ModelFromPackage
from nequip.utils.global_state import set_global_state

QUICK = ["trainer.max_epochs=2", "++trainer.enable_progress_bar=false", "++trainer.enable_model_summary=false"]
SMALL = [
    "training_module.model.num_features=4",
    "training_module.model.radial_mlp_width=8",
    "training_module.model.num_layers=2",
]


def train(
    workspace: Path, name: str, config: str, *overrides: str, check: bool = True, configs: Path = ROOT / "configs" / "nequip"
) -> tuple[Path, str]:
    """Runs a shipped configuration; returns the folder of the run and what it printed."""
    folder = workspace / name
    command = ["nequip-train", "-cp", str(configs), "-cn", config, f"hydra.run.dir={folder}"]
    text = run(*command, f"data_file={workspace / 'train.xyz'}", *QUICK, *overrides, cwd=workspace, check=check)
    return folder, text


def without_efa(name: str, workspace: Path) -> str:
    """Writes a shipped configuration without its EFA parts; returns its name."""
    config = yaml.safe_load((ROOT / "configs" / "nequip" / f"{name}.yaml").read_text())
    model = config["training_module"]["model"]
    if name == "finetune":
        config["training_module"]["model"] = model["model"]
    else:
        del model["efa"], model["mode"]
        model["_target_"] = "nequip.model.NequIPGNNModel"
    del config["training_module"]["optimizer"]["param_groups"]
    callbacks = config["trainer"]["callbacks"]
    config["trainer"]["callbacks"] = [c for c in callbacks if "efa_addons" not in c["_target_"]]
    (workspace / f"{name}_stock.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return f"{name}_stock"


def saved(path: Path) -> torch.nn.Module:
    """The model in a checkpoint or a package."""
    set_global_state(allow_tf32=False)
    model = (ModelFromPackage if path.suffix == ".zip" else ModelFromCheckpoint)(str(path))
    return (next(iter(model.values())) if isinstance(model, torch.nn.ModuleDict) else model).eval()


def randomize_checkpoint(path: Path, size: float = 0.3) -> None:
    """Random weights in the EFA blocks of a checkpoint (without a moving average)."""
    content = torch.load(path, weights_only=False)
    fill([value for name, value in content["state_dict"].items() if ".efa." in name], size, seed=0)
    torch.save(content, path)
