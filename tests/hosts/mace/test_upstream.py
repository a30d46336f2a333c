"""The quick subset of MACE's own tests, and the runner that holds them against the table (`tox -e mace-upstream` runs all)."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "upstream"
sys.path.append(str(FOLDER))

import upstream_run  # noqa: E402
from upstream_table import ALIKE, LEFT_OUT, LITERAL, MACE_VERSION, REFUSED, ROWS, SKIPPED, WITHOUT, Row, assign  # noqa: E402


@pytest.mark.skipif(version("mace-torch") != MACE_VERSION, reason=f"the table is for mace-torch {MACE_VERSION}")
def test_quick_subset_is_as_the_table_says(tmp_path):
    runner = [sys.executable, str(FOLDER / "upstream_run.py"), "--quick", "--forms", "patched", "random"]
    done = subprocess.run([*runner, "--folder", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_page_of_the_documentation_is_the_table():
    assert upstream_run.DOCS.read_text() == upstream_run.to_markdown()


def test_a_test_without_a_row_and_a_row_without_its_tests_are_problems():
    rows, problems = assign(["tests/test_new.py::test_it", "tests/test_cg.py::test_U_matrix"])
    assert [row.tests for row in rows.values()] == ["test_cg.py::*"]
    assert problems[0] == "tests/test_new.py::test_it has no row in the table"
    assert "the row test_padding.py::* stands for 8 tests, and there are 0" in problems
    assert len(problems) == len(ROWS)  # one for each other row


@pytest.mark.parametrize(
    "kind, stock, random",
    [
        (ALIKE, ("passed", []), ("passed", ["efa"])),
        (LITERAL, ("passed", []), ("failed", ["efa"])),
        (REFUSED, ("passed", []), ("failed", ["efa"])),
        (WITHOUT, ("passed", []), ("passed", [])),
        (SKIPPED, ("skipped", []), ("skipped", [])),
    ],
)
def test_compare_wants_outcome_and_use_of_efa_as_in_the_row(kind, stock, random):
    def problems(**changed):
        results = {"stock": stock, "random": random, **changed}
        found = {
            form: {"test": {"outcome": outcome, "notes": notes, "why": "EFAError: no"}}
            for form, (outcome, notes) in results.items()
        }
        return upstream_run.compare({"test": Row("test", 1, kind)}, found)

    def flip(outcome):
        return "failed" if outcome == "passed" else "passed"

    assert not problems()
    assert problems(stock=(flip(stock[0]), stock[1]))
    assert problems(patched=("failed", []))
    assert problems(random=(flip(random[0]), random[1]))
    if kind != SKIPPED:
        assert problems(random=(random[0], [] if random[1] else ["efa"]))
    assert upstream_run.compare({"test": Row("test", 1, kind)}, {"stock": {}})


def test_a_refusal_must_be_an_efa_error():
    found = {"test": {"outcome": "failed", "notes": ["efa"], "why": "RuntimeError"}}
    assert upstream_run.compare({"test": Row("test", 1, REFUSED)}, {"zero": found})


def test_reasons_are_given():
    assert all(row.reason for row in ROWS if row.kind != ALIKE)
    assert all(row.kind != LEFT_OUT for row in ROWS if row.quick)
