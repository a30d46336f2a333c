"""The patch for MACE applies cleanly to its version and says what the derived forward says."""

from __future__ import annotations

import ast
import inspect
import shutil
import subprocess
import textwrap
from importlib.metadata import version

import pytest
from mace.modules import models

from efa_addons.hosts.mace.derive import add_lines
from efa_addons.hosts.mace.model import FORWARD

PATCHED = "0.3.16"


@pytest.mark.skipif(version("mace-torch") != PATCHED, reason=f"the patch is for mace-torch {PATCHED}")
def test_patch_applies_and_equals_the_derived_forward(tmp_path, request):
    target = tmp_path / "mace" / "modules" / "models.py"
    target.parent.mkdir(parents=True)
    shutil.copy(models.__file__, target)
    patch = request.config.rootpath / "patches" / f"mace-torch-{PATCHED}.diff"
    subprocess.run(["git", "apply", "--check", str(patch)], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)

    def forward(text: str) -> str:
        classes = [node for node in ast.parse(text).body if getattr(node, "name", "") == "ScaleShiftMACE"]
        return ast.dump(next(node for node in classes[0].body if getattr(node, "name", "") == "forward"))

    derived = add_lines(inspect.getsource(models.ScaleShiftMACE.forward), FORWARD, "forward")
    expected = "class ScaleShiftMACE:\n" + textwrap.indent(derived, "    ")
    assert forward(target.read_text()) == forward(expected)
