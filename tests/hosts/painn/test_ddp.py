"""Training on two processes is training on one, up to summation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from painn_support import SMALL, train

from efa_addons import EFAConfig
from efa_addons.hosts.painn import efa_config, load

# What each process has: its batches, its settings (which nothing copies from one to the other), and its weights in the end.
WITNESS = """
import torch
from pytorch_lightning import Callback

class Witness(Callback):
    def on_fit_start(self, trainer, task):
        self.batches = []

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.batches.append(batch["_idx"].tolist())

    def on_train_end(self, trainer, task):
        seen = {"batches": self.batches, "efa": task.model.representation.efa_config, "weights": task.model.state_dict()}
        torch.save(seen, f"rank{trainer.global_rank}of{trainer.world_size}.pt")
"""
# In order (overfit_batches turns off shuffling), and by an optimizer that does not blow up rounding as Adam does.
STEPS = [
    *SMALL,
    "data.num_train=12",
    "data.num_val=4",
    "++trainer.overfit_batches=1.0",
    "++trainer.precision=64-true",
    "task.optimizer_cls=torch.optim.SGD",
    "+callbacks.witness._target_=witness.Witness",
]
TWO = ["trainer=ddp_trainer", "trainer.accelerator=cpu"]


@pytest.fixture(scope="module")
def witness(workspace) -> None:
    """A module that spktrain can import."""
    (workspace / "witness.py").write_text(WITNESS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(workspace), os.environ.get("PYTHONPATH")])))
        yield


def test_two_processes_train_as_one(workspace, witness):
    """SchNetPack's own strategy, ddp, ends with an error where a parameter gets no gradient."""
    single, _ = train(workspace, "one", "efa_tutorial", *STEPS, "data.batch_size=6")
    split = f"+data.split_file={single / 'split.npz'}"
    double, text = train(workspace, "two", "efa_tutorial", *STEPS, *TWO, "data.batch_size=3", split)
    assert "distributed_backend=gloo" in text
    (one,), two = _seen(single, 1), _seen(double, 2)
    # steps are the same, and each process has its half of every batch
    assert [sorted(a + b) for a, b in zip(two[0]["batches"], two[1]["batches"], strict=True)] == [*map(sorted, one["batches"])]
    assert len(one["batches"]) == 4 and {len(batch) for rank in two for batch in rank["batches"]} == {3}
    # 'auto' options became the same numbers in each
    assert two[0]["efa"] == two[1]["efa"] == one["efa"] and one["efa"]["normalization"] == 9.0
    # weights, the checkpoint and the model
    new = [name for name in one["weights"] if name.endswith(("mlp.2.weight", "out.weight")) and ".efa." in name]
    assert len(new) == 4 and all(one["weights"][name].abs().max() > 1e-4 for name in new)
    assert _farthest(two[0]["weights"], two[1]["weights"]) == 0.0 and _farthest(one["weights"], two[0]["weights"]) < 1e-12
    first, second = (torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False) for folder in (single, double))
    assert _farthest(first["state_dict"], second["state_dict"]) < 1e-12
    models = [load(folder / "best_model") for folder in (single, double)]
    assert _farthest(*(model.state_dict() for model in models)) < 1e-12
    assert efa_config(models[1]) == EFAConfig.from_dict(two[1]["efa"])


def _seen(folder: Path, processes: int) -> list[dict[str, Any]]:
    assert len(list(folder.glob("rank*.pt"))) == processes
    return [torch.load(folder / f"rank{rank}of{processes}.pt", weights_only=False) for rank in range(processes)]


def _farthest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Largest difference of any weight; settings are equal."""
    assert ours.keys() == theirs.keys()
    weights = [name for name, value in ours.items() if isinstance(value, torch.Tensor)]
    assert all(ours[name] == theirs[name] for name in ours.keys() - {*weights})
    return max((ours[name] - theirs[name]).abs().max().item() for name in weights)
