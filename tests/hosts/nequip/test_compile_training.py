"""compile_mode: compile trains as eager mode does."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from nequip_programs import SMALL, saved, train

from efa_addons.hosts.nequip import efa_parameters

pytestmark = pytest.mark.slow
# Six structures to train with in batches of three, and three for validation: batches of one would not be compiled.
SPLIT = [f"data.split_dataset.{part}={share}" for part, share in (("train", 0.5), ("val", 0.25), ("test", 0.25))]
STEPS = ["data.train_dataloader.batch_size=3", "trainer.max_epochs=3", "trainer.log_every_n_steps=1", "run=[train]"]
# As its compiled form, the eager model is to take the quadrature.
ONE_LAYER = ["training_module.model.num_layers=1", "+training_module.model.efa.method=quadrature"]
NARROW = [f"training_module.model.efa.num_features_{of}=4" for of in ("qk", "v")]


def losses(workspace: Path, mode: str) -> tuple[list[float], Path]:
    """Training losses, step by step."""
    logger = "{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: " + str(workspace / f"logs_{mode}") + "}"
    overrides = [f"+training_module.model.compile_mode={mode}", f"+trainer.logger={logger}"]
    folder, _ = train(workspace, mode, "tutorial", *SMALL, *SPLIT, *STEPS, *ONE_LAYER, *NARROW, *overrides)
    path = next((workspace / f"logs_{mode}").rglob("metrics.csv"))
    rows = list(csv.DictReader(path.open()))
    name = "train_loss_step/weighted_sum"
    return [float(row[name]) for row in rows if row.get(name)], folder


def test_compiled_training_equals_eager_training(workspace):
    (compiled, folder), (eager, reference) = losses(workspace, "compile"), losses(workspace, "eager")
    assert len(compiled) == 6 and compiled == pytest.approx(eager, rel=1e-4)
    weights, expected = (efa_parameters(saved(path / "last.ckpt")) for path in (folder, reference))
    assert weights.keys() == expected.keys()
    for name, parameter in weights.items():
        assert torch.allclose(parameter, expected[name], rtol=0, atol=1e-3), name
