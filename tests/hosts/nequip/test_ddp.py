"""Training on two processes is training on one, up to summation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nequip_programs import SMALL, train

SPLIT = [f"data.split_dataset.{part}={share}" for part, share in (("train", 0.67), ("val", 0.17), ("test", 0.16))]
# In order, and by an optimizer that does not blow up rounding as Adam does.
STEPS = [
    "training_module.model.model_dtype=float64",
    "data.train_dataloader.shuffle=false",
    "training_module.optimizer._target_=torch.optim.SGD",
    "run=[train]",
]
TWO = ["+trainer.devices=2", "+trainer.accelerator=cpu"]


def weights(workspace: Path, name: str, batch_size: int, *overrides: str) -> dict[str, torch.Tensor]:
    batches = f"data.train_dataloader.batch_size={batch_size}"
    folder, _ = train(workspace, name, "tutorial", *SMALL, *SPLIT, *STEPS, batches, *overrides)
    return torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]


@pytest.mark.parametrize("strategy", ["ddp", "{_target_: nequip.train.SimpleDDPStrategy, process_group_backend: gloo}"])
def test_two_processes_train_as_one(workspace, strategy):
    """Lightning's strategy ends with an error where a parameter gets no gradient."""
    one = weights(workspace, "one", 4)
    two = weights(workspace, strategy.strip("{")[:3], 2, f"+trainer.strategy={strategy}", *TWO)
    assert one.keys() == two.keys()
    trained = [name for name in one if ".efa." in name and name.endswith(("mlp.2.weight", "out.weight"))]
    assert len(trained) >= 4 and all(one[name].abs().max() > 0 for name in trained)
    worst = max((value - two[name]).abs().max().item() for name, value in one.items() if value.is_floating_point())
    assert worst < 1e-9
