"""Training on two processes is training on one, up to summation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nequip_programs import SMALL, train

HALF = [f"data.split_dataset.{part}={share}" for part, share in (("train", 0.5), ("val", 0.25), ("test", 0.25))]  # of twelve
# In order, and by an optimizer that does not blow up rounding as Adam does.
STEPS = [
    "training_module.model.model_dtype=float64",
    "data.train_dataloader.shuffle=false",
    "training_module.optimizer._target_=torch.optim.SGD",
    "run=[train]",
    "trainer.max_epochs=3",
]
TWO = ["+trainer.devices=2", "+trainer.accelerator=cpu"]


def weights(workspace: Path, name: str, batch_size: int, *overrides: str) -> dict[str, torch.Tensor]:
    batches = f"data.train_dataloader.batch_size={batch_size}"
    folder, _ = train(workspace, name, "tutorial", *SMALL, *HALF, *STEPS, batches, *overrides)
    return torch.load(folder / "last.ckpt", weights_only=False)["state_dict"]


@pytest.fixture(scope="module")
def one(workspace) -> dict[str, torch.Tensor]:
    return weights(workspace, "one", 6)


@pytest.mark.parametrize("strategy", ["ddp", "{_target_: nequip.train.SimpleDDPStrategy, process_group_backend: gloo}"])
def test_two_processes_train_as_one(workspace, one, strategy):
    """Lightning's strategy ends with an error where a parameter gets no gradient."""
    two = weights(workspace, strategy.strip("{")[:3], 3, f"+trainer.strategy={strategy}", *TWO)
    assert one.keys() == two.keys()
    trained = [name for name in one if ".efa." in name and name.endswith(("mlp.2.weight", "out.weight"))]
    assert len(trained) >= 4 and all(one[name].abs().max() > 0 for name in trained)
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.allclose(value, two[name], rtol=0, atol=1e-9), name
