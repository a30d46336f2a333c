"""The benchmark in its quick size: that it runs behind its gate, not how fast."""

from __future__ import annotations

import csv
import subprocess
import sys
from importlib.util import find_spec


def test_quick_benchmark(tmp_path, request):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.mace", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=request.config.rootpath, check=True, capture_output=True)
    rows = list(csv.DictReader(next(tmp_path.glob("mace_*_cpu_quick.csv")).open()))
    assert [row["task"] for row in rows] == ["inference", "training step"] * 2
    assert all(float(row["time ratio"]) > 0 and float(row["memory ratio"]) > 1 for row in rows)


def test_share_of_a_step_on_a_gpu(tmp_path, request):
    """The section of benchmarks.gpu that is about MACE, on the CPU, with cuEquivariance where it is installed."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--quick", "--device", "cpu", "--only", "mace"]
    command += ["--repeats", "1", "--out", str(tmp_path)]
    subprocess.run(command, cwd=request.config.rootpath, check=True, capture_output=True)
    rows = list(csv.DictReader((tmp_path / "gpu_interpreter_mace_quick.csv").open()))
    hosts = ["MACE"] + ["MACE, cuEquivariance"] * (find_spec("cuequivariance_torch") is not None)
    timed = [(row["contender"], row["task"]) for row in rows if float(row["ms"] or 0) > 0]
    # on a GPU an inference without CUDA graphs, too; what is profiled comes last, as nothing may be timed after it
    orders = ("inference", "training step"), ("inference, device alone",)
    expected = [(host + efa, task) for tasks in orders for host in hosts for task in tasks for efa in ("", " with EFA")]
    assert timed == expected
    assert "MACE, inference of 1000 atoms" in (tmp_path / "gpu_interpreter_mace_quick.md").read_text()
