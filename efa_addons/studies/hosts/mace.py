"""MACE in studies: `efa-mace-train`, with and without its EFA options."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from efa_addons.studies.hosts import DISTRIBUTIONS, LABELS, Training, Variant, decay, valid_file

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from efa_addons.studies.study import ModelSettings, TrainingSettings

LABEL, DISTRIBUTION = LABELS["mace"], DISTRIBUTIONS["mace"]
COMMAND = (sys.executable, "-m", "efa_addons.hosts.mace.train")

# Flags of MACE, the same for every variant. Validation (and with it the choice of the final weights) happens in epochs that are
# multiples of eval_interval: one epoch more than that makes the last one count. The decay ends at 1.3 % of the learning rate.
TRAINING = (
    *("--model=ScaleShiftMACE", "--num_channels=16", "--max_L=2", "--max_ell=2", "--correlation=2", "--num_interactions=2"),
    *("--r_max=3.0", "--num_radial_basis=8", "--radial_MLP=[32,32]", "--E0s=average", "--default_dtype=float32"),
    *("--loss=weighted", "--energy_weight=10", "--forces_weight=100", "--batch_size=8", "--valid_batch_size=24"),
    *("--max_num_epochs=141", "--eval_interval=5", "--valid_fraction=0.1"),
    *("--lr=0.01", "--amsgrad", "--scheduler=ExponentialLR", "--lr_scheduler_gamma=0.9693", "--ema", "--ema_decay=0.99"),
    *("--device=cpu", "--num_workers=0", "--pin_memory=False", "--plot=False"),
)
QUICK = ("--num_channels=8", "--max_num_epochs=2", "--eval_interval=1", "--batch_size=4", "--valid_fraction=0.2")

# unnormalised, as in the paper: at this small width it learns the far angle sooner
EFA = ("--efa", "--efa_normalization=1")
VARIANTS = (
    Variant("mace", "MACE", "plain"),
    Variant("mace_efa", "MACE + EFA", "efa", (*EFA, "--efa_max_degree_v=2")),
    Variant("mace_efa_scalar", "MACE + scalar EFA", "scalar", (*EFA, "--efa_max_degree_v=0", "--efa_contraction=false")),
)


def training(quick: bool, seed: int) -> Training:
    flags = (*TRAINING, *(QUICK if quick else ()), f"--seed={seed}")
    epochs = [flag.partition("=")[2] for flag in flags if flag.startswith("--max_num_epochs=")]
    return Training(flags, int(epochs[-1]))


def settings(
    model: ModelSettings,
    training: TrainingSettings,
    efa: Mapping[str, Any] | None,
    seed: int,
    elements: Sequence[str],
    device: str,
    base: Path | None = None,
) -> Training:
    """The demonstration's, with sizes, epochs and learning rate of a study; some ten validations."""
    last = training.num_epochs - 1  # MACE counts from 0 and validates multiples of the interval: the last must be one
    every = max(n for n in range(1, max(2, training.num_epochs // 10 + 1)) if last % n == 0)
    flags = [
        *(f"--r_max={model.cutoff}", f"--num_interactions={model.num_layers}", f"--num_channels={model.num_features}"),
        *(f"--max_L={model.max_degree}", f"--max_ell={max(2, model.max_degree)}"),
        *(f"--max_num_epochs={training.num_epochs}", f"--eval_interval={every}", f"--batch_size={training.batch_size}"),
        *(f"--lr={training.lr}", f"--lr_scheduler_gamma={decay(training.num_epochs)}", f"--seed={seed}", f"--device={device}"),
    ]
    if base is not None:
        flags += [f"--foundation_model={base}", "--multiheads_finetuning=False", "--E0s=foundation"]
    if efa is not None:
        flags += ["--efa", *(f"--efa_{name}={_flag(value)}" for name, value in efa.items())]
    return Training((*TRAINING, *flags), training.num_epochs)


def prepare(folder: Path, train_file: Path) -> None:
    """Nothing: it reads extended XYZ."""


def command(name: str, folder: Path, train_file: Path, flags: tuple[str, ...]) -> list[str]:
    files = [f"--train_file={train_file}"]
    if (valid := valid_file(train_file)) is not None:
        files.append(f"--valid_file={valid}")
    return [*COMMAND, f"--name={name}", f"--work_dir={folder}", *files, *flags]


def model_file(name: str, folder: Path) -> Path:
    return folder / f"{name}.model"


def calculator(path: Path, device: str = "cpu") -> tuple[Calculator, int]:
    """In float64, so that profiles carry no noise."""
    from mace.calculators import MACECalculator

    trained = torch.load(path, map_location="cpu", weights_only=False).double()
    parameters = sum(p.numel() for p in trained.parameters())
    return MACECalculator(models=trained.to(device), device=device, default_dtype="float64"), parameters


def epochs_done(folder: Path) -> int:
    last = max((entry["epoch"] for entry in _entries(folder, "opt")), default=0)
    return int(last)


def seconds_per_epoch(folder: Path) -> float:
    entries = _entries(folder, "opt")
    epochs = {entry["epoch"] for entry in entries}
    return sum(entry["time"] for entry in entries) / len(epochs) if epochs else float("nan")


def curve(folder: Path) -> list[dict[str, float]]:
    steps = _entries(folder, "opt")
    return [
        {
            "epoch": entry["epoch"] + 1,
            "seconds": sum(step["time"] for step in steps if step["epoch"] <= entry["epoch"]),
            "energy_mae": entry["mae_e"],
            "force_mae": entry["mae_f"],
        }
        for entry in _entries(folder, "eval")
        if entry["epoch"] is not None  # before the first epoch
    ]


def _flag(value: Any) -> str:
    """As `efa-mace-train` reads it: YAML."""
    return json.dumps(value) if not isinstance(value, str) else value


def _entries(folder: Path, mode: str) -> list[dict[str, Any]]:
    """MACE's records of training steps ("opt") or validations ("eval"): JSON lines; a line being written is left out."""
    entries = []
    for path in folder.glob("results/*_train.txt"):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("mode") == mode:
                entries.append(entry)
    return entries
