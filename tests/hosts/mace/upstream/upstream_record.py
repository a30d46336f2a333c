"""A pytest plugin: runs the tests of MACE that the table selects, and records the outcome of each.

EFA_UPSTREAM_QUICK: 1 for the quick subset. EFA_UPSTREAM_RESULTS: the JSON file to write, {"collected": [node ids], "tests":
{node id: {"outcome": …, "why": …, "notes": […], "seconds": …}}}. EFA_UPSTREAM_NOTES: a file into which the processes of a test
write what is noteworthy about it; it is read and emptied after each test.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from upstream_table import assign, selected

results: dict[str, dict] = {}
collected: list[str] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    collected.extend(item.nodeid for item in items)
    wanted = selected(assign(collected)[0], quick=os.environ["EFA_UPSTREAM_QUICK"] == "1")
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in wanted])
    items[:] = [item for item in items if item.nodeid in wanted]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test has the worst outcome of its setup, call and teardown."""
    result = results.setdefault(report.nodeid, {"outcome": "passed", "notes": [], "seconds": 0.0})
    result["seconds"] += report.duration
    if report.skipped or report.failed:
        result["outcome"] = report.outcome
        result["why"] = str(report.longrepr)[-2000:]
    if report.when == "teardown":
        notes = Path(os.environ["EFA_UPSTREAM_NOTES"])
        result["notes"] = sorted(set(notes.read_text().split()))
        notes.write_text("")


def pytest_sessionfinish() -> None:
    Path(os.environ["EFA_UPSTREAM_RESULTS"]).write_text(json.dumps({"collected": collected, "tests": results}, indent=1))
