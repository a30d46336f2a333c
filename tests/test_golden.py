"""Golden cases: numbers of the reference implementation, and that the script which checks them can fail."""

from pathlib import Path

import numpy as np
import pytest
from run_golden import TOLERANCE, evaluate, main

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(GOLDEN.glob("*.npz"))


def test_all_cases_are_here():
    assert len(CASES) == 18
    assert TOLERANCE <= 1e-9


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_equals_the_reference(path):
    """Output, gradient by positions and gradient by inputs."""
    assert [error for error in evaluate(path) if not error <= 1e-9] == []


def test_script_accepts_the_golden_cases(capsys):
    assert main(str(GOLDEN)) == 0
    assert "18 of 18 cases agree" in capsys.readouterr().out


def alter(folder, key, change):
    """A copy of one good and one altered case in `folder`."""
    for path in CASES[:2]:
        with np.load(path) as file:
            case = dict(file)
        if path == CASES[1]:
            case[key] = change(case[key])
        np.savez(folder / path.name, **case)
    return str(folder)


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("output", lambda values: values * (1 + 1e-7)),
        ("output", lambda values: values + np.nan),
        ("output", lambda values: values[:-1]),
        ("grad_positions", lambda values: -values),
        ("grad_inputs", lambda values: values + 1e-5),
        ("params/Dense_2/0+/bias", np.zeros_like),
        ("positions", lambda values: values * 1.001),
    ],
)
def test_script_refuses_an_altered_case(key, change, tmp_path, capsys):
    assert main(alter(tmp_path, key, change)) == 1
    out = capsys.readouterr().out
    assert "1 of 2 cases agree" in out
    assert out.count("FAILED") == 1


def test_script_refuses_an_unreadable_case(tmp_path, capsys):
    (tmp_path / "broken.npz").write_text("not a case")
    assert main(str(tmp_path)) == 1
    assert "FAILED" in capsys.readouterr().out


def test_script_refuses_an_empty_folder(tmp_path, capsys):
    assert main(str(tmp_path)) == 2
    assert "no *.npz" in capsys.readouterr().err
