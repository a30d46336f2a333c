"""Benchmarks of the core in their quick size: that they run behind their gate, not how fast."""

from __future__ import annotations

import csv
import subprocess
import sys


def test_attention_methods(tmp_path, request):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.attention_methods", "--quick", "--out", str(tmp_path)]
    subprocess.run(command, cwd=request.config.rootpath, check=True, capture_output=True)
    rows = list(csv.DictReader(next(tmp_path.glob("attention_methods_*_cpu_quick.csv")).open()))
    assert [row["degree of Y"] for row in rows] == ["0", "0", "1", "1"]
    assert all(float(row["ratio"]) > 0 for row in rows)
