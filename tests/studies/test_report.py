"""The report from synthetic numbers, and the demonstration's bookkeeping; nothing is trained."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from efa_addons.errors import EFAError
from efa_addons.studies import demo, report

TWISTS = tuple(np.linspace(0, 90, 7))
REFERENCE = report.Profile(TWISTS, tuple(-500 + 0.8 * np.cos(np.radians(TWISTS)) ** 2))


def _result(name, label, height):
    profile = report.Profile(TWISTS, tuple(-499 + height * np.cos(np.radians(TWISTS)) ** 2))
    return report.Result(
        name=name,
        label=label,
        energy_mae=1.0,
        energy_rmse=1.25,
        force_mae=10.0,
        force_rmse=20.0,
        scan_deviation=1e3 * profile.largest_deviation(REFERENCE),
        barrier_error=1e3 * (profile.barrier - REFERENCE.barrier),
        num_parameters=12345,
        seconds_per_epoch=1.5,
        profile=profile,
    )


RESULTS = [_result("mace", "MACE", 0.0), _result("mace_efa", "MACE + EFA", 0.78), _result("other", "other", 0.02)]


def test_profiles_are_compared_with_means_aligned():
    flat, shifted = RESULTS[0].profile, dataclasses.replace(REFERENCE, energies=tuple(np.array(REFERENCE.energies) + 7))
    assert shifted.largest_deviation(REFERENCE) == pytest.approx(0, abs=1e-9)
    assert flat.barrier - REFERENCE.barrier == pytest.approx(-0.8)
    assert flat.largest_deviation(REFERENCE) == pytest.approx(0.4)
    np.testing.assert_allclose(flat.aligned(REFERENCE), 0.4)
    assert REFERENCE.aligned(REFERENCE).min() == pytest.approx(0, abs=1e-9)


def test_report_files(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    report.write(tmp_path, RESULTS, REFERENCE, {"seed": 3})
    assert "MACE + EFA" in capsys.readouterr().out
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| MACE | 1.0 / 1.2 | 10 / 20 | 400 | -800 | 12,345 | 1.5 |" in table
    assert "energy MAE / RMSE meV/atom" in table and "parameters" in table
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["label"] == "MACE + EFA" and float(rows[1]["barrier_error"]) == pytest.approx(-20)
    content = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert content["settings"] == {"seed": 3} and len(content["results"][2]["profile"]["energies"]) == 7


def test_plot_is_a_png(tmp_path):
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "profile.png", RESULTS, REFERENCE)
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def _results_file(folder: Path, lines: list[str]) -> None:
    (folder / "results").mkdir()
    (folder / "results" / "x_run-0_train.txt").write_text("\n".join(lines))


def test_epochs_and_seconds_are_read_from_maces_results(tmp_path):
    assert report.epochs_done(tmp_path) == 0
    entries = [{"mode": "eval", "epoch": None}]
    entries += [{"mode": "opt", "epoch": epoch, "time": 0.5} for epoch in (0, 0, 1, 1)]
    _results_file(tmp_path, [*map(json.dumps, entries), '{"mode": "opt", "epo'])
    assert report.epochs_done(tmp_path) == 1
    assert report.seconds_per_epoch(tmp_path) == pytest.approx(1.0)


@pytest.fixture
def fake_run(tmp_path, monkeypatch):
    """A run whose 'training' is a script that writes a model file or fails."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.xyz").write_text("structures")
    monkeypatch.setattr(demo, "version", lambda name: "1.0")

    def make(script: str, flags: tuple[str, ...] = ("--max_num_epochs=2",)) -> demo.Run:
        monkeypatch.setattr(demo, "COMMAND", (sys.executable, "-c", script))
        return demo.Run(demo.Variant("mace", "MACE"), tmp_path / "run", tmp_path / "data", flags)

    return make


WRITE_MODEL = "import sys, pathlib; pathlib.Path(sys.argv[2].split('=')[1], 'mace.model').write_text('model')"


def test_finished_runs_are_recognised_by_flags_and_data(fake_run):
    run = fake_run(WRITE_MODEL)
    assert not run.is_finished()
    demo.train([run])
    assert run.is_finished()
    assert not dataclasses.replace(run, flags=("--max_num_epochs=3",)).is_finished()
    (run.data / "train.xyz").write_text("other structures")
    assert not run.is_finished()


def test_a_failing_run_shows_its_log_and_command(fake_run):
    run = fake_run("raise SystemExit('no such option')")
    with pytest.raises(EFAError, match="no such option") as error:
        demo.train([run])
    assert "The command was" in str(error.value) and "--max_num_epochs=2" in str(error.value)
    assert not run.is_finished()


def test_variants_differ_only_in_their_efa_flags():
    assert demo.VARIANTS[0].flags == ()
    assert all(flag.startswith("--efa") for variant in demo.VARIANTS for flag in variant.flags)
    last = int([flag for flag in demo.TRAINING if flag.startswith("--max_num_epochs")][0].partition("=")[2]) - 1
    interval = int([flag for flag in demo.TRAINING if flag.startswith("--eval_interval")][0].partition("=")[2])
    assert last % interval == 0  # the last epoch is validated
