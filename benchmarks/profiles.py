"""Where efa_addons spends its time: torch's profiler over one call of "forces", in a process of its own."""

from __future__ import annotations

import multiprocessing
import warnings
from dataclasses import asdict

import torch

from benchmarks.contenders import build
from benchmarks.problems import Problem
from benchmarks.rows import Row

LARGEST = 10  # operations listed


def _profile(contender: str, problem: Problem, threads: int) -> list[Row]:
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    run = build(contender, problem, "forces")
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        run()
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    shares = [(f"{event.key} ({event.count} calls)", event.self_cpu_time_total) for event in events[:LARGEST]]
    shares.append(("everything else", total - sum(time for _, time in shares)))
    common = {"case": "profile", "contender": contender, "status": "%", **asdict(problem)}
    return [Row(task=name, ms=1e-3 * time, rate=100 * time / max(total, 1e-9), **common) for name, time in shares]


def profile(contender: str, problem: Problem, threads: int) -> list[Row]:
    """A row for each of the operations that take longest, `task` its name and `rate` its share of the time in percent."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_profile, (contender, problem, threads))
