"""The patch for MACE applies cleanly to its version says what the derived forward says, and computes the same."""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import shutil
import subprocess
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from e3nn.util import jit
from mace.modules import models
from mace_support import evaluate, randomize

from efa_addons import EFAConfig
from efa_addons.hosts.derive import add_lines
from efa_addons.hosts.mace import insert_efa
from efa_addons.hosts.mace.model import FORWARD, SUPPORTED

PATCHED = "0.3.16"
pytestmark = pytest.mark.skipif(version("mace-torch") != PATCHED, reason=f"the patch is for mace-torch {PATCHED}")


@pytest.fixture
def patched(tmp_path, request) -> Path:
    """The patched mace/modules/models.py."""
    target = tmp_path / "mace" / "modules" / "models.py"
    target.parent.mkdir(parents=True)
    shutil.copy(models.__file__, target)
    patch = request.config.rootpath / "patches" / f"mace-torch-{PATCHED}.diff"
    subprocess.run(["git", "apply", "--check", str(patch)], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    return target


def test_patch_applies_and_equals_the_derived_forward(patched):
    def forward(text: str) -> str:
        classes = [node for node in ast.parse(text).body if getattr(node, "name", "") == "ScaleShiftMACE"]
        return ast.dump(next(node for node in classes[0].body if getattr(node, "name", "") == "forward"))

    derived = add_lines(inspect.getsource(models.ScaleShiftMACE.forward), FORWARD, "forward", SUPPORTED)
    expected = "class ScaleShiftMACE:\n" + textwrap.indent(derived, "    ")
    assert forward(patched.read_text()) == forward(expected)


def test_blocks_in_the_patched_class_compute_what_they_do_in_ours(patched, stock_model, ethanol):
    """A ScaleShiftMACE of the patched module, without the derived forward, in eager mode and as TorchScript."""
    spec = importlib.util.spec_from_file_location("mace.modules.patched_models", patched)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ours = randomize(insert_efa(stock_model, EFAConfig(max_length=8.0)))
    theirs = copy.deepcopy(ours)
    theirs.__class__ = module.ScaleShiftMACE
    assert type(theirs).forward is not type(ours).forward
    expected, stock = evaluate(ours, ethanol, compute_stress=True), evaluate(stock_model, ethanol)
    assert not torch.allclose(expected["energy"], stock["energy"])
    for model in (theirs, jit.compile(copy.deepcopy(theirs))):
        found = evaluate(model, ethanol, compute_stress=True)
        for name in ("energy", "forces", "stress", "node_feats"):
            assert torch.allclose(found[name], expected[name], rtol=0, atol=1e-12), name
