"""NequIP's own fixtures, small data, and small models."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("nequip")

import ase.io
from host_support import labelled_ethanols, run
from nequip.utils.unittests.conftest import *  # noqa: F403  what its unit-test classes ask for
from nequip_programs import SMALL, randomize_checkpoint, train


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A folder with train.xyz: rattled ethanols without a cell, labelled by a Lennard-Jones potential."""
    folder = tmp_path_factory.mktemp("nequip")
    ase.io.write(folder / "train.xyz", labelled_ethanols(12))
    return folder


@pytest.fixture
def ethanol(workspace):
    atoms = ase.io.read(workspace / "train.xyz", index=0)
    atoms.calc = None
    return atoms


@pytest.fixture(scope="session")
def far_sighted(workspace) -> Path:
    """A package of a model whose EFA blocks have random weights, so that they say something."""
    efa = [f"training_module.model.efa.num_features_{of}=4" for of in ("qk", "v")]
    no_average = ["training_module._target_=nequip.train.NequIPLightningModule", "~training_module.ema_decay"]
    folder, _ = train(workspace, "far_sighted", "tutorial", *SMALL, *efa, *no_average, "run=[train]", "trainer.max_epochs=1")
    randomize_checkpoint(folder / "best.ckpt")
    path = workspace / "far_sighted.nequip.zip"
    run("nequip-package", "build", str(folder / "best.ckpt"), str(path), cwd=workspace)
    return path


@pytest.fixture(scope="session")
def compiled(far_sighted):
    """compiled("ase"): the package compiled for a target, once in a session."""
    files: dict[str, Path] = {}

    def make(target: str) -> Path:
        if target not in files:
            path = far_sighted.with_name(f"{target}.nequip.pt2")
            options = ["--mode", "aotinductor", "--device", "cpu", "--target", target]
            run("nequip-compile", str(far_sighted), str(path), *options, cwd=far_sighted.parent)
            files[target] = path
        return files[target]

    return make
