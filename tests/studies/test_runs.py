"""Bookkeeping of the demonstration's runs, with scripts in place of hosts; nothing is trained."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from efa_addons.errors import EFAError
from efa_addons.studies import demo, hosts, runs
from efa_addons.studies.hosts import epochs
from efa_addons.studies.runs import Run

WRITE_MODEL = (
    "import sys, pathlib; pathlib.Path(sys.argv[1], 'model').write_text(pathlib.Path(sys.argv[1], 'c.yaml').read_text())"
)


@pytest.fixture
def fake_run(tmp_path):
    """A run whose 'training' is a script that writes a model file or fails."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.xyz").write_text("structures")

    def make(script: str) -> Run:
        host = SimpleNamespace(
            DISTRIBUTION="torch",
            prepare=lambda folder, train_file: shutil.copy(train_file, folder / "copy"),
            command=lambda name, folder, train_file, flags: [sys.executable, "-c", script, str(folder), *flags],
            model_file=lambda name, folder: folder / "model",
            epochs_done=epochs.epochs_done,
            curve=lambda folder: [{"epoch": 2}],
        )
        training = hosts.Training(("--epochs=2",), 2, {"c.yaml": "a: 1"})
        variant = hosts.Variant("fake_efa", "fake + EFA", "efa", ("--efa",))
        return Run(host, variant, tmp_path / "run", tmp_path / "data", training)

    return make


def test_finished_runs_are_recognised_by_flags_files_and_data(fake_run):
    run = fake_run(WRITE_MODEL)
    assert not run.is_finished()
    demo.train([run])
    assert run.is_finished()
    assert run.model.read_text() == "a: 1" and (run.folder / "copy").read_text() == "structures"
    others = [{"flags": ("--epochs=3",)}, {"files": {"c.yaml": "a: 2"}}]
    for change in others:
        training = dataclasses.replace(run.training, **change)
        assert not dataclasses.replace(run, training=training).is_finished()
    commented = dataclasses.replace(run.training, files={"c.yaml": "a: 1 # as before"})
    assert dataclasses.replace(run, training=commented).is_finished()
    plain = dataclasses.replace(run.variant, flags=())
    assert not dataclasses.replace(run, variant=plain).is_finished()
    (run.data / "train.xyz").write_text("other structures")
    assert not run.is_finished()


def test_a_failing_run_shows_its_log_and_command(fake_run):
    run = fake_run("raise SystemExit('no such option')")
    with pytest.raises(EFAError, match="no such option") as error:
        demo.train([run])
    assert "The command was" in str(error.value) and "--epochs=2 --efa" in str(error.value)
    assert not run.is_finished()


def test_a_signal_ends_the_demonstration_with_its_trainings(fake_run, monkeypatch):
    run = fake_run("import sys, time; from pathlib import Path; Path(sys.argv[1], 'begun').touch(); time.sleep(600)")
    started = []

    def end_when_begun(folder):
        if (folder / "begun").exists():
            os.kill(os.getpid(), signal.SIGTERM)
        return 0

    def popen(*given, **options):
        started.append(subprocess.Popen(*given, **options))
        return started[0]

    run.host.epochs_done = end_when_begun
    monkeypatch.setattr(runs, "subprocess", SimpleNamespace(Popen=popen, STDOUT=subprocess.STDOUT))
    with pytest.raises(SystemExit):
        demo.train([run])
    assert started[0].poll() == -signal.SIGTERM


def test_a_run_that_leaves_no_model_has_failed(fake_run):
    run = fake_run("print('done')")
    with pytest.raises(EFAError, match="exit code 0"):
        demo.train([run])


def test_epochs_and_seconds_are_read_from_maces_results(tmp_path):
    pytest.importorskip("mace")
    mace = hosts.load("mace")
    assert mace.epochs_done(tmp_path) == 0
    entries = [{"mode": "eval", "epoch": None}]
    entries += [{"mode": "opt", "epoch": epoch, "time": 0.5} for epoch in (0, 0, 1, 1)]
    (tmp_path / "results").mkdir()
    lines = [*map(json.dumps, entries), '{"mode": "opt", "epo']
    (tmp_path / "results" / "x_run-0_train.txt").write_text("\n".join(lines))
    assert mace.epochs_done(tmp_path) == 1
    assert mace.seconds_per_epoch(tmp_path) == pytest.approx(1.0)


def test_the_record_of_epochs_counts_training_steps_only(tmp_path, monkeypatch):
    assert epochs.epochs_done(tmp_path) == 0
    clock = iter(range(100))
    monkeypatch.setattr(epochs.time, "monotonic", lambda: float(next(clock)))
    record = epochs.EpochRecord(str(tmp_path / epochs.FILE))
    for epoch in range(2):
        record.on_train_epoch_start()
        for _ in range(3):
            record.on_train_batch_start()
            record.on_train_batch_end()
        next(clock)  # a validation
        record.on_train_epoch_end(SimpleNamespace(current_epoch=epoch))
    with Path(record.path).open("a") as file:
        file.write('{"epoch": 2, "ti')
    assert epochs.epochs_done(tmp_path) == 2
    assert epochs.seconds_per_epoch(tmp_path) == pytest.approx(3.0)
