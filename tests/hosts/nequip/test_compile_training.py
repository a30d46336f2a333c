"""compile_mode: compile trains as eager mode does."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from gpu_support import KERNELS_RUN_ON, gpu, kernels
from host_support import run
from nequip_programs import SMALL, saved, train, without_efa

from efa_addons.hosts.nequip import efa_parameters, has_efa

pytestmark = pytest.mark.slow
# Six structures to train with in batches of three, and three for validation: batches of one would not be compiled.
SPLIT = [f"data.split_dataset.{part}={share}" for part, share in (("train", 0.5), ("val", 0.25), ("test", 0.25))]
STEPS = ["data.train_dataloader.batch_size=3", "trainer.log_every_n_steps=1", "run=[train]"]
# As its compiled form, the eager model is to take the quadrature.
QUADRATURE = "+training_module.model.efa.method=quadrature"
ONE_LAYER = "training_module.model.num_layers=1"
NARROW = [f"training_module.model.efa.num_features_{of}=4" for of in ("qk", "v")]


def losses(workspace: Path, name: str, config: str, *overrides: str) -> tuple[list[float], Path]:
    """Training losses, step by step, and the folder of the run, which compiled a model if it was told to and only then."""
    logger = "{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: " + str(workspace / f"logs_{name}") + "}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_LOGS", "output_code")  # names what Inductor makes, also where it finds it in its cache
        folder, text = train(workspace, name, config, *SPLIT, *STEPS, *overrides, f"+trainer.logger={logger}")
    assert ("Output code written to" in text) == any("compile_mode=compile" in option for option in overrides)
    path = next((workspace / f"logs_{name}").rglob("metrics.csv"))
    rows = list(csv.DictReader(path.open()))
    column = "train_loss_step/weighted_sum"
    return [float(row[column]) for row in rows if row.get(column)], folder


def assert_same_efa(folder: Path, reference: Path, within: float) -> None:
    weights, expected = (efa_parameters(saved(path / "last.ckpt")) for path in (folder, reference))
    assert weights and weights.keys() == expected.keys()
    for name, parameter in weights.items():
        assert torch.allclose(parameter, expected[name], rtol=0, atol=within), name


@pytest.mark.parametrize("threads", [1, 2])
def test_compiled_training_equals_eager_training(workspace, monkeypatch, threads):
    """Inductor's programs for several threads are others."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    options = [*SMALL, ONE_LAYER, QUADRATURE, *NARROW, "trainer.max_epochs=3"]
    mode = "+training_module.model.compile_mode="
    (compiled, folder), (eager, reference) = (
        losses(workspace, f"{m}_{threads}", "tutorial", *options, mode + m) for m in ("compile", "eager")
    )
    assert len(compiled) == 6 and compiled == pytest.approx(eager, rel=1e-4)
    assert_same_efa(folder, reference, within=1e-3)


@gpu
def test_compiled_training_on_a_gpu(workspace):
    """Compiled and not there, and on the CPU."""
    options = [*SMALL, ONE_LAYER, QUADRATURE, *NARROW, "trainer.max_epochs=3", "data.train_dataloader.shuffle=false"]
    mode = "+training_module.model.compile_mode="
    expected, reference = losses(workspace, "cpu", "tutorial", *options, "+trainer.accelerator=cpu")
    for name in ("compile", "eager"):
        found, folder = losses(workspace, f"gpu_{name}", "tutorial", *options, mode + name, "+trainer.accelerator=gpu")
        assert len(found) == 6 and found == pytest.approx(expected, rel=1e-3)
        assert_same_efa(folder, reference, within=1e-2)


@kernels
def test_compiled_training_with_kernels(workspace, monkeypatch):
    """As nodes of the graph: on a GPU, or TRITON_INTERPRET=1."""
    options = [*SMALL, ONE_LAYER, QUADRATURE, *NARROW, "trainer.max_epochs=1", "data.train_dataloader.shuffle=false"]
    runs = {
        "chunked": ["+training_module.model.compile_mode=eager", "+trainer.accelerator=cpu"],
        "triton": [
            "+training_module.model.compile_mode=compile",
            f"+trainer.accelerator={KERNELS_RUN_ON}",
        ],
    }
    found = {}
    for name, overrides in runs.items():
        monkeypatch.setenv("EFA_ADDONS_BACKEND", name)
        found[name] = losses(workspace, f"by_{name}", "tutorial", *options, *overrides)
    (expected, reference), (steps, folder) = found["chunked"], found["triton"]
    assert len(steps) == 2 and steps == pytest.approx(expected, rel=1e-3)
    assert_same_efa(folder, reference, within=1e-2)


@pytest.fixture(scope="module")
def package(workspace) -> Path:
    """A trained model without EFA."""
    tiny = [*SMALL, ONE_LAYER, "training_module.model.l_max=0", "run=[train]", "trainer.max_epochs=1"]
    folder, _ = train(workspace, "base", without_efa("tutorial", workspace), *tiny, configs=workspace)
    path = workspace / "base.nequip.zip"
    run("nequip-package", "build", str(folder / "best.ckpt"), str(path), cwd=workspace)
    return path


def test_compiled_fine_tuning_and_its_restart_equal_eager_fine_tuning(workspace, package):
    """EFA goes into the compiled model of a package; half of the epochs, and the others from the checkpoint."""
    options = [f"package={package}", QUADRATURE, *(f"+{option}" for option in NARROW), "data.train_dataloader.shuffle=false"]
    compiled = [*options, "+training_module.model.model.compile_mode=compile"]
    half, stopped = losses(workspace, "half", "finetune", *compiled, "trainer.max_epochs=1")
    assert has_efa(saved(stopped / "last.ckpt"))
    restart = [f"++ckpt_path={stopped / 'last.ckpt'}", "trainer.max_epochs=2"]
    rest, folder = losses(workspace, "rest", "finetune", *compiled, *restart)
    whole, reference = losses(workspace, "whole", "finetune", *options, "trainer.max_epochs=2")
    assert len(whole) == 4 and half + rest == pytest.approx(whole, rel=1e-6)
    assert_same_efa(folder, reference, within=1e-5)  # an epoch moves them by 5e-3
