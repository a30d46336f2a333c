"""The benchmark in its quick size: that it runs behind its gate, not how fast."""

from __future__ import annotations

import csv
import subprocess
import sys


def test_quick_benchmark(tmp_path, request):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.painn", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=request.config.rootpath, check=True, capture_output=True)
    rows = list(csv.DictReader(next(tmp_path.glob("painn_*_cpu_quick.csv")).open()))
    assert [row["task"] for row in rows] == ["inference", "training step"] * 2
    assert all(float(row["time ratio"]) > 0 and float(row["memory ratio"]) > 1 for row in rows)
