"""The files of studies, the order of their runs, resuming and failing; scripts in place of hosts, nothing is trained."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

pytest.importorskip("ase")

from efa_addons import cli
from efa_addons.errors import EFAError
from efa_addons.studies import environments, forks, hosts, runner, sources, worker
from efa_addons.studies.cost import Cost
from efa_addons.studies.dynamics import Dynamics
from efa_addons.studies.environments import Environment
from efa_addons.studies.record import FORMAT, Record, read_all, same_split
from efa_addons.studies.runs import split
from efa_addons.studies.study import Study
from efa_addons.studies.worker import Job
from efa_addons.version import __version__

CONTENT = {
    "title": "Two atoms",
    "question": "Does it see?",
    "data": {"pairs": {"source": "two_atoms", "num_train": 20}},
    "model": {"cutoff": 4.0},
    "training": {"num_epochs": 10},
    "variants": {
        "without EFA": {},
        "with EFA": {"efa": {"max_length": 9.0}},
        "far": {"model": {"cutoff": 8}, "hosts": ["mace"]},
    },
    "seeds": [0, 1],
    "sizes": {"paper": {"training": {"num_epochs": 1000}, "data": {"pairs": {"num_train": 500}}}},
}
ALIKE = {label: CONTENT["variants"][label] for label in ("without EFA", "with EFA")}  # of the same model


def load(size: str = "quick", **changes) -> Study:
    return Study.from_dict("pairs", {**CONTENT, **changes}, size)


def test_cells_are_data_hosts_variants_and_seeds():
    study = load()
    cells = list(study.cells())
    assert len(cells) == 2 * (3 + 2 + 2)
    assert [cell.seed for cell in cells] == [0] * 7 + [1] * 7
    assert cells[0].name == "pairs/mace/without-efa/seed-0"
    assert {cell.host for cell in cells if cell.variant.label == "far"} == {"mace"}
    assert {(cell.variant.label, cell.model.cutoff) for cell in cells} == {
        ("without EFA", 4.0),
        ("with EFA", 4.0),
        ("far", 8.0),
    }


def test_a_host_has_settings_of_its_own_for_all_its_models():
    study = load(host_training={"painn": {"lr": 0.003}}, base=BASE, variants=ALIKE)
    assert {(cell.host, cell.training.lr) for cell in study.cells()} == {("mace", 0.01), ("nequip", 0.01), ("painn", 0.003)}
    assert {cell.training.num_epochs for cell in study.cells() if cell.variant.label != "base"} == {10}
    with pytest.raises(EFAError, match="host of host_training 'pain'.*painn"):
        load(host_training={"pain": {"lr": 0.003}})
    with pytest.raises(EFAError, match="key of host_training of painn 'rate'"):
        load(host_training={"painn": {"rate": 0.003}})


BASE = {"data": {"source": "two_atoms", "num_train": 30, "r_max": 4.0}, "training": {"num_epochs": 5}}


def test_a_base_is_a_cell_before_those_that_go_on_from_it():
    cells = list(load(base=BASE, variants=ALIKE, hosts=["mace", "painn"]).cells())
    assert [cell.name for cell in cells[:2]] == ["base/mace/base/seed-0", "base/painn/base/seed-0"]
    base = {cell.host: cell for cell in cells[:2]}
    assert all(cell.base is base[cell.host] for cell in cells[2:6])
    assert base["mace"].training.num_epochs == 5 and base["mace"].data.options["r_max"] == 4.0
    assert base["mace"].variant.efa is None and cells[2].training.num_epochs == 10
    for name in ("base", "Base"):
        with pytest.raises(EFAError, match="data cannot be called base"):
            load(base=BASE, variants=ALIKE, data={name: {"source": "two_atoms"}})
    with pytest.raises(EFAError, match="variant far: its model is that of the study's base"):
        load(base=BASE, variants={"far": {"model": {"cutoff": 9.0}}})
    for wrong, message in (({"data": BASE["data"], "lr": 1}, "lr"), ({"training": {}}, "missing: data")):
        with pytest.raises(EFAError, match=message):
            load(base=wrong, variants=ALIKE)


def test_sizes_change_what_they_name():
    paper, tiny = load("paper"), load("tiny")
    assert paper.training.num_epochs == 1000 and paper.training.batch_size == load().training.batch_size
    assert paper.data[0].options["num_train"] == 500
    assert tiny.seeds == (0,) and tiny.training.num_epochs == 2 and tiny.model.cutoff == 4.0
    assert tiny.data[0].options["num_train"] == sources.SOURCES["two_atoms"].tiny["num_train"]
    other = load("tiny", seeds=[1, 2], dynamics={"seeds": [1]})
    assert other.seeds == other.dynamics.seeds == (0,)


def test_empty_sections_are_sections_with_defaults():
    study = load(dynamics={}, cost={})
    assert study.dynamics == Dynamics() and study.cost == Cost()
    assert load().dynamics is None and load(cost=None).cost is None


def test_keys_that_stand_twice_are_refused(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(CONTENT) + "seeds: [5]\n")
    with pytest.raises(EFAError, match=r"pairs.yaml: line \d+: seeds stands here a second time"):
        Study.load(path)
    path.write_text(
        yaml.safe_dump({**CONTENT, "variants": {}}).replace("variants: {}", "variants: { a: &a {}, b: {<<: *a}, a: {} }")
    )
    with pytest.raises(EFAError, match="a stands here a second time"):
        Study.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"varants": {}}, "varants.*variants"),
        ({"model": {"cutof": 3}}, "cutof.*cutoff"),
        ({"training": {"lr": "fast"}}, "lr must be float"),
        ({"hosts": ["mice"]}, "mice.*mace"),
        ({"data": {"pairs": {"source": "two_atom"}}}, "two_atom.*two_atoms"),
        ({"data": {"two_atoms": {"num_trian": 3}}}, "num_trian.*num_train"),
        ({"variants": {"a": {"efa": {"max_lenght": 9.0}}}}, "max_lenght.*max_length"),
        ({"variants": {"a": {"modell": {}}}}, "modell.*model"),
        ({"variants": {"a": {"hosts": ["painn"]}}, "hosts": ["mace"]}, "painn.*mace"),
        ({"units": "kcal"}, "kcal"),
        ({"seeds": [-1]}, "seeds must be a list of integers, 0 to 4294967295, got \\[-1\\]"),
        ({"seeds": 3}, "seeds must be a list of integers, 0 to 4294967295, got 3"),
        ({"variants": {"EFA 1": {}, "EFA (1)": {}}}, "EFA 1.*EFA \\(1\\).*same folder"),
        ({"variants": {"!": {}}}, "same folder ''"),
        ({"variants": {"..": {}}}, "same folder ''"),
        ({"data": {8: {"source": "two_atoms"}}}, "name of a data set must be text .*got 8: .*in quotes"),
        *(
            ({"data": {name: {"source": "two_atoms"}}}, "name of a data set must be")
            for name in ("../../x", "..", ".a", "a b", "")
        ),
        ({"data": {"a": {"source": "two_atoms"}, "A": {"source": "two_atoms"}}}, "data a and A differ in case only"),
        ({"dynamics": {"seeds": [5]}}, "dynamics: seeds.*\\[0, 1\\], got \\[5\\]"),
        ({"dynamics": {"hosts": ["maze"]}}, "host of dynamics 'maze'.*did you mean 'mace'"),
        ({"dynamics": {"variants": ["with EFB"]}}, "variant of dynamics 'with EFB'"),
        ({"variants": {"base": {}}}, "cannot be called base"),
        ({"sizes": {"huge": {}}}, "huge.*quick"),
        ({"variants": "all"}, "variants must be a mapping"),
        ({"title": 3}, "title must be text, got 3"),
        ({"hosts": None}, "hosts must be a list.*got None"),
        ({"variants": {"a": {"hosts": "mace"}}}, "hosts of a must be a list of some of mace, nequip, painn, got 'mace'"),
        ({"variants": {10: {}}}, "label of a variant must be text, got 10"),
        ({"training": {"num_epochs": 0}}, "num_epochs must be a positive number, got 0"),
        ({"model": {"cutoff": -1.0}}, "cutoff must be a positive number, got -1.0"),
        ({"data": {"two_atoms": {"num_train": "200"}}}, "two_atoms: num_train must be an integer, got '200'"),
        ({"data": {"two_atoms": {"num_train": 10.5}}}, "two_atoms: num_train must be an integer, got 10.5"),
        ({"data": {"two_atoms": {"seed": -1}}}, "two_atoms: seed must be an integer, 0 to 4294967295, got -1"),
        ({"data": {"two_atoms": {"r_max": "far"}}}, "two_atoms: r_max must be a number, got 'far'"),
        ({"data": {"nacl": {"sizes": 39}}}, "nacl: sizes must be a list, each entry an integer, got 39"),
        ({"data": {"dimers": {"tail": [7.0, "x"]}}}, "dimers: tail must be a list, each entry a number, got"),
        ({"data": {"dimers": {"dimers": "cl_hf"}}}, "dimers: dimers must be a list, each entry text, got 'cl_hf'"),
        ({"variants": {"with EFA": {"efa": None}}}, "efa of with EFA is empty: {} takes its defaults"),
        ({"base": {}}, "base: missing: data"),
        ({"literature": "paper"}, "literature must be a list"),
        ({"literature": [{"lable": "paper"}]}, "lable.*label"),
        ({"literature": [{"source": "paper"}]}, "needs a label"),
        ({"literature": [{"label": "paper", "data": "pair"}]}, "data of literature 'pair'.*pairs"),
        ({"literature": [{"label": "paper", "metrics": {"test": {"energy_mae": "6e-4"}}}]}, "must be a number.*got '6e-4'"),
    ],
)
def test_wrong_files_are_refused_by_name(changes, message):
    with pytest.raises(EFAError, match=f"(?s){message}"):
        load(**changes)


def test_a_file_without_a_question_is_refused(tmp_path):
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in CONTENT.items() if key != "question"}))
    with pytest.raises(EFAError, match=r"pairs\.yaml.*missing: question"):
        Study.load(path)


# writes what a worker would, without the time that importing torch takes
SUCCEED = """
import json, sys
from pathlib import Path
folder = Path(sys.argv[-1])
job = json.loads((folder / "job.json").read_text())
record = job["record"]
record["settings"]["command"] = ["train"]
scans = json.loads(Path(job["data"], "scans.json").read_text())
curve = {"x": [1.0, 2.0], "energies": [2.0, 3.0], "reference": [3.0, 4.0]}
profiles = {name: {"scan": scan, **curve} for name, scan in scans.items() if name in record["split"]}
versions = {"efa_addons": VERSION, "mace-torch": "1", "schnetpack": "1"}
record |= {"versions": versions, "hardware": "", "status": "finished", "format": FORMAT}
(folder / "run.json").write_text(json.dumps({**record, "profiles": profiles}))
with (folder.parents[5] / "runs").open("a") as file:
    print(record["seed"], record["variant"], file=file)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A runner whose workers are a script; returns the study's folder and what sets the script."""
    program = tmp_path / "python"

    def use(script: str) -> None:
        (tmp_path / "worker.py").write_text(script.replace("VERSION", repr(__version__)).replace("FORMAT", str(FORMAT)))
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {tmp_path / "worker.py"} "$@"\n')
        program.chmod(0o755)

    use(SUCCEED)
    monkeypatch.setattr(runner, "find", lambda host, given: Environment(host, program, "1"))
    monkeypatch.setattr(forks, "possible", lambda device: False)  # the script knows nothing of them
    return use


def run(tmp_path: Path, **changes) -> list[Record]:
    changes = {"hosts": ["mace"], **changes}
    return runner.run(load("tiny", seeds=[0], **changes), tmp_path / "out", parallel=2)[1]


def ran(tmp_path: Path) -> list[str]:
    path = tmp_path / "out" / "runs"
    lines = sorted(path.read_text().splitlines()) if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_finished_runs_are_not_repeated(tmp_path, fake):
    everything = ["0 far", "0 with EFA", "0 without EFA"]
    records = run(tmp_path)
    assert [record.variant for record in records] == ["without EFA", "with EFA", "far"] and ran(tmp_path) == everything
    assert same_split(records) and set(records[0].split) == {"train", "valid", "test", "scan"}
    run(tmp_path)
    assert ran(tmp_path) == []
    (tmp_path / "out/pairs/tiny/pairs/mace/far/seed-0/run.json").unlink()
    run(tmp_path)
    assert ran(tmp_path) == ["0 far"]
    changed = {**CONTENT["variants"], "with EFA": {"efa": {"max_length": 10.0}}}
    run(tmp_path, variants=changed)
    assert ran(tmp_path) == ["0 with EFA"]
    run(tmp_path, variants=changed, data={"pairs": {"source": "two_atoms", "seed": 1}})
    assert ran(tmp_path) == everything


def test_finished_runs_of_a_file_that_has_changed_are_repeated(tmp_path, fake, capsys):
    folder = sources.write(tmp_path / "made", "two_atoms", {"num_train": 8, "num_valid": 1, "num_test": 1})
    path = folder / "train.xyz"
    data = {"pairs": {"source": "files", "train": str(path)}}
    run(tmp_path, data=data)
    assert len(ran(tmp_path)) == 3
    run(tmp_path, data=data)
    assert ran(tmp_path) == []
    path.write_text(path.read_text().replace("REF_energy=-0.", "REF_energy=-1."))
    run(tmp_path, data=data)
    assert len(ran(tmp_path)) == 3 and "3 finished runs are of other settings, data" in capsys.readouterr().out


def test_finished_runs_say_what_the_study_says_now(tmp_path, fake):
    run(tmp_path)
    ran(tmp_path)
    row = {"label": "paper", "source": "arXiv", "metrics": {}}
    variants = dict(reversed(CONTENT["variants"].items()))
    records = run(tmp_path, title="Two", literature=[row], variants=variants)
    assert ran(tmp_path) == []
    assert {(record.title, record.literature[0]["label"], record.variants) for record in records} == {
        ("Two", "paper", (*variants,))
    }


def test_a_finished_run_of_a_renamed_variant_has_its_name(tmp_path, fake):
    run(tmp_path)
    ran(tmp_path)
    renamed = {label.upper(): content for label, content in CONTENT["variants"].items()}
    assert [record.variant for record in run(tmp_path, variants=renamed)] == ["WITHOUT EFA", "WITH EFA", "FAR"]
    assert ran(tmp_path) == []


def test_a_finished_run_takes_how_its_scan_is_read_from_the_data(tmp_path, fake):
    run(tmp_path)
    ran(tmp_path)
    folder = tmp_path / "out/pairs/tiny"
    path = folder / "pairs/mace/far/seed-0/run.json"
    profile = {"scan": {"x": "distance", "tail": [1.0, 2.0]}, "x": [1.0], "energies": [2.0], "reference": [3.0]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "profiles": {"scan": profile}}))
    found = run(tmp_path)[2].profiles["scan"]
    (wanted,) = json.loads((folder / "data/pairs/scans.json").read_text()).values()
    assert found.scan == wanted and found.scan["tail"] != [1.0, 2.0] and found.energies == (2.0,) and ran(tmp_path) == []


def test_finished_runs_without_a_scan_of_the_study_are_evaluated_again(tmp_path, fake):
    path = sources.write(tmp_path / "made", "two_atoms", {"num_train": 8, "num_valid": 1, "num_test": 1, "num_scan": 4})
    test = {name: str(path / "scan.xyz") for name in ("test", "path_1", "path_2")}
    scan = {"x": "distance", "label": "distance (Å)"}

    def scanned(*names: str) -> list[set[str]]:
        options = {"train": str(path / "train.xyz"), "test": test, "scans": {name: scan for name in names}}
        return [{*record.profiles} for record in run(tmp_path, data={"pairs": {"source": "files", **options}})]

    for names in (("path_1",), ("path_1", "path_2"), ("path_2",), ()):
        assert scanned(*names) == [{*names}] * 3 and len(ran(tmp_path)) == 3
        assert scanned(*names) == [{*names}] * 3 and ran(tmp_path) == []


def test_a_scan_without_structures_is_not_missed(tmp_path, fake):
    study = load(data={"pairs": {"source": "two_atoms", "num_scan": 0}}, seeds=[0], hosts=["mace"])
    for times in (3, 0):
        runner.run(study, tmp_path / "out")
        assert len(ran(tmp_path)) == times


def test_another_device_is_another_run(tmp_path, fake, capsys, monkeypatch):
    run(tmp_path)
    ran(tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(EFAError, match="device cuda: the torch of .* finds no GPU"):
            runner.run(load("tiny", seeds=[0], hosts=["mace"]), tmp_path / "out", device="cuda")
    monkeypatch.setattr(runner, "require_device", lambda *given: None)
    runner.run(load("tiny", seeds=[0], hosts=["mace"]), tmp_path / "out", device="cuda")
    assert len(ran(tmp_path)) == 3 and "3 finished runs are of other settings" in capsys.readouterr().out


def test_two_at_a_time_are_refused(tmp_path, fake):
    pytest.importorskip("fcntl")
    with (
        runner.alone_in(tmp_path / "out/pairs/tiny"),
        pytest.raises(EFAError, match="another process is at work in .*pairs/tiny"),
    ):
        run(tmp_path)
    assert ran(tmp_path) == []
    run(tmp_path)
    assert len(ran(tmp_path)) == 3


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals are for POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", None)])
def test_a_signal_ends_a_study_as_an_exception_does(number):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as error, runner.ending_by_signals():
        os.kill(os.getpid(), number)
        time.sleep(10)
    assert error.value.code == 128 + number and signal.getsignal(number) == before


def train_by(script: str, tmp_path: Path, monkeypatch, base: Path | None = None, done: int = 1, **changes) -> Record:
    """What a worker makes of a host whose training is a script and says that `done` of two epochs are done."""
    data = sources.write(tmp_path / "data", "two_atoms", sources.SOURCES["two_atoms"].tiny)
    host = SimpleNamespace(
        DISTRIBUTION="torch",
        settings=lambda *given: hosts.Training((), 2, {}),
        prepare=lambda folder, train_file: None,
        command=lambda name, folder, train_file, flags: [sys.executable, "-c", script, str(folder / "model")],
        seconds_per_epoch=lambda folder: 1.5,
        calculator=lambda path, device: (None, 7),
        model_file=lambda name, folder: folder / "model",
        epochs_done=lambda folder: 1,
        curve=lambda folder: [{"epoch": done, "seconds": 1.0, "energy_mae": 1.0, "force_mae": 1.0}],
    )
    monkeypatch.setattr(worker.hosts, "load", lambda name: host)
    study = load("tiny", seeds=[0], hosts=["mace"], **changes)
    known = runner._known(study, "cpu", next(study.cells()), split(data), None)
    job = Job(known, str(data), "cpu", 1, None if base is None else str(base))
    job.save(tmp_path / "run")
    return worker.run(tmp_path / "run")


COUNTS = """
import sys
from pathlib import Path
model = Path(sys.argv[1])
model.touch()
with (model.parents[2] / "count").open("a") as file:
    print("trained", file=file)
"""


def test_a_training_that_ends_early_is_a_failed_run(tmp_path, monkeypatch):
    for times in (1, 2):
        record = train_by(COUNTS, tmp_path, monkeypatch)
        assert not record.finished and "ended after 1 of 2 epochs" in record.error
        assert (tmp_path / "count").read_text() == times * "trained\n"


def test_what_fails_after_the_training_does_not_cost_it(tmp_path, monkeypatch, capsys):
    found = {"test": {"energy_mae": 1.0}}
    with monkeypatch.context() as patch:
        patch.setattr(worker, "evaluate", lambda calculator, data: 1 / 0)
        assert "ZeroDivisionError" in train_by(COUNTS, tmp_path, monkeypatch, done=2).error
    assert "line" in capsys.readouterr().err  # where it was
    with monkeypatch.context() as patch:
        patch.setattr(worker, "evaluate", lambda calculator, data: (found, {}))
        patch.setattr(worker, "nve", lambda *given: 1 / 0)
        record = train_by(COUNTS, tmp_path, monkeypatch, done=2, dynamics={})
        assert (
            not record.finished and record.metrics == found and record.num_parameters == 7 and record.seconds["training"] == 3.0
        )
    monkeypatch.setattr(worker, "evaluate", lambda calculator, data: (found, {}))
    record = train_by(COUNTS, tmp_path, monkeypatch, done=2)
    assert record.finished and record.metrics == found and record.peak_memory > 0 and record.seconds["training"] == 3.0
    assert (tmp_path / "count").read_text() == "trained\n"
    sources.write(tmp_path / "data", "two_atoms", {**sources.SOURCES["two_atoms"].tiny, "seed": 1})
    monkeypatch.setattr(sources, "write", lambda folder, *given: folder)
    train_by(COUNTS, tmp_path, monkeypatch, done=2)
    assert (tmp_path / "count").read_text() == 2 * "trained\n"


def test_nothing_goes_on_from_a_base_that_failed(tmp_path, monkeypatch):
    base = tmp_path / "base"
    (base / worker.TRAINING).mkdir(parents=True)
    (base / worker.TRAINING / "model").touch()  # what it had when it failed
    study = load("tiny", seeds=[0], hosts=["mace"])
    known = runner._known(study, "cpu", next(study.cells()), {}, None)
    Record(**known, versions={}, hardware="", status="failed").save(base)
    record = train_by("raise SystemExit('trained')", tmp_path, monkeypatch, base)
    assert not record.finished and "no model to go on from: its training failed" in record.error
    (base / worker.TRAINING / "model").unlink()
    Record(**known, versions={}, hardware="", status="finished").save(base)
    record = train_by("raise SystemExit('trained')", tmp_path, monkeypatch, base)
    assert not record.finished and "model is gone. Remove" in record.error


def test_what_cannot_be_run_is_refused_before_anything_is(tmp_path, fake):
    with pytest.raises(EFAError, match="hosts mace, nequip, painn"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "alone_in", None)
        runner.run(load("tiny"), tmp_path / "out", hosts=["mice"])
    with pytest.raises(EFAError, match="dynamics 'tset'.*test"):
        run(tmp_path, dynamics={"set": "tset"})
    with pytest.raises(EFAError, match="index must be below 2.*got 2"):
        run(tmp_path, dynamics={"index": 2})
    with pytest.raises(EFAError, match="structure 0 of pairs's set test is one atom"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.cumulene, "read", lambda folder, name: ["A"])
        run(tmp_path, dynamics={})
    with pytest.raises(EFAError, match="parallel.*got -1"):
        runner.run(load("tiny"), tmp_path / "out", parallel=-1)
    assert ran(tmp_path) == []


DIES = """
import sys
sys.exit("no module named rich")
"""
BEGINS_ANOTHER = """
import subprocess, sys, time
from pathlib import Path
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


@pytest.mark.skipif(not forks.possible("cpu"), reason="forks are for Linux")
def test_a_server_that_dies_before_it_serves_is_a_failed_run(tmp_path, fake, monkeypatch):
    fake(DIES)
    monkeypatch.setattr(forks, "possible", lambda device: True)
    records = run(tmp_path)
    assert [record.status for record in records] == ["failed"] * 3
    assert "no module named rich" in records[0].error and "mace.log" in records[0].error


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="sessions are for POSIX")
def test_a_worker_is_stopped_with_its_training(tmp_path):
    path = tmp_path / "pid"
    worker = subprocess.Popen([sys.executable, "-c", BEGINS_ANOTHER, str(path)], start_new_session=True)
    while not path.exists() or not path.read_text():
        time.sleep(0.05)
    forks.stop(worker)
    for _ in range(100):
        try:
            state = Path(f"/proc/{path.read_text()}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return
        if state == "Z":  # nobody has asked for its end
            return
        time.sleep(0.05)
    raise AssertionError("the training goes on")


def test_a_new_version_of_the_host_repeats_them(tmp_path, fake, monkeypatch):
    run(tmp_path)
    ran(tmp_path)
    found = runner.find
    monkeypatch.setattr(runner, "find", lambda host, given: Environment(host, found(host, given).python, "2"))
    run(tmp_path)
    assert len(ran(tmp_path)) == 3


def test_a_worker_that_dies_is_a_failed_run_and_the_others_go_on(tmp_path, fake, capsys):
    fake("import sys; sys.exit('out of memory') if 'with-efa' in sys.argv[-1] else None\n" + SUCCEED)
    records = run(tmp_path)
    assert [record.status for record in records] == ["finished", "failed", "finished"]
    assert "out of memory" in records[1].error and "log.txt" in records[1].error
    assert "failed" in capsys.readouterr().out
    assert len(read_all(tmp_path / "out")[0]) == 3
    ran(tmp_path)
    fake(SUCCEED)
    assert all(record.finished for record in run(tmp_path))  # what failed is tried again, and nothing else
    assert ran(tmp_path) == ["0 with EFA"]


def test_labels_and_titles_may_look_like_markup(tmp_path, fake, capsys):
    pytest.importorskip("matplotlib")
    fake("import sys; sys.exit('out of memory') if 'efa-2' in sys.argv[-1] else None\n" + SUCCEED)
    path = tmp_path / "pairs[b].yaml"
    variants = {"without EFA": {}, "EFA [/2]": {"efa": {}}, "EFA [l=1]": {"efa": {}}}
    path.write_text(yaml.safe_dump({**CONTENT, "title": "Two [/atoms]", "variants": variants}))
    command = ["study", str(path), "--size", "tiny", "--hosts", "mace", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 1
    printed = capsys.readouterr().out
    for part in ("failed: pairs, MACE EFA [/2], seed 0", "pairs[b] (tiny) Two [/atoms]", "MACE, EFA [l=1]"):
        assert part in printed


def test_the_exit_status_tells_whether_some_runs_failed_or_all(tmp_path, fake, capsys):
    pytest.importorskip("matplotlib")
    fake("import sys; sys.exit('out of memory')")
    path = tmp_path / "pairs.yaml"
    path.write_text(yaml.safe_dump(CONTENT))
    command = ["study", str(path), "--size", "tiny", "--hosts", "mace", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 2 and "every run failed" in capsys.readouterr().err
    assert "out of memory" in (tmp_path / "out/pairs/tiny/report.md").read_text()
    fake("import sys; sys.exit('out of memory') if 'with-efa' in sys.argv[-1] else None\n" + SUCCEED)
    assert cli.main(command) == 1 and "failed: pairs/mace/with EFA/seed-0" in capsys.readouterr().out
    fake(SUCCEED)
    assert cli.main(command) == 0


def test_commands_that_cannot_run_are_one_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    binary, taken = tmp_path / "pairs.yaml", tmp_path / "taken"
    binary.write_bytes(b"title: \xff\xfe")
    taken.write_text("a file")
    commands = [
        (["study", str(tmp_path)], "directory"),
        (["study", str(binary)], "pairs.yaml: 'utf-8' codec"),
        (["demo", "--quick", "--out", str(taken)], "taken"),
    ]
    for command, message in commands:
        assert cli.main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    for command in (["demo", "--seed", "-1"], ["insert", "a", "b", "--seed", "99999999999"]):
        with pytest.raises(SystemExit):
            cli.main(command)
        assert "must be an integer, 0 to 4294967295, got" in capsys.readouterr().err


def test_options_that_make_no_structures_are_said(tmp_path):
    for source, options in (("two_atoms", {"r_min": 5.0, "r_max": 4.0}), ("dimers", {"distances": [4.0]})):
        with pytest.raises(EFAError, match="r_min must be positive|dimers makes no structures of .*IndexError"):
            sources.write(tmp_path / source, source, {**sources.SOURCES[source].tiny, **options})


def test_runs_that_the_study_has_no_more_are_left_out_of_its_report(tmp_path, fake):
    pytest.importorskip("matplotlib")
    path, out = tmp_path / "pairs.yaml", tmp_path / "out"

    def reported(of: Path, command: list[str]) -> tuple[set[str], str]:
        assert cli.main(command) == 0
        with (of / "table.csv").open(encoding="utf-8") as file:
            return {row["label"] for row in csv.DictReader(file)}, (of / "report.md").read_text()

    def studied(host: str, **changes) -> tuple[set[str], str]:
        path.write_text(yaml.safe_dump({**CONTENT, "base": BASE, "variants": ALIKE, **changes}))
        return reported(out / "pairs/quick", ["study", str(path), "--out", str(out), "--hosts", host])

    of_mace = {"MACE, base", "MACE, without EFA", "MACE, with EFA"}
    labels, text = studied("mace")
    assert labels == of_mace and "Left out" not in text
    labels, text = studied("painn")
    assert labels == of_mace | {label.replace("MACE", "PaiNN") for label in of_mace} and "Left out" not in text
    changes = {"variants": {"without EFA": {}, "new": {"efa": {}}}, "seeds": [1]}
    labels, text = studied("mace", **changes)
    assert labels == {"MACE, base", "MACE, without EFA", "MACE, new", "PaiNN, base", "PaiNN, without EFA"}
    assert "Not run yet, or not to the end: pairs/painn/new/seed-1." in text
    left = [f"pairs/{host}/with-efa/seed-{seed}" for host in ("mace", "painn") for seed in (0, 1)]
    left += [f"{run}/seed-0" for host in ("mace", "painn") for run in (f"base/{host}/base", f"pairs/{host}/without-efa")]
    assert f"Left out, since their study no longer has them: {', '.join(sorted(left))}." in text
    again, text = reported(out, ["report", str(out)])
    assert again == labels and all(f"pairs/quick/{run}" in text for run in left)
    (out / "pairs/quick/cells.json").write_text("[")
    assert cli.main(["report", str(out)]) == 2
    (out / "pairs/quick/cells.json").unlink()
    again, text = reported(out, ["report", str(out)])
    assert again == labels | {"MACE, with EFA", "PaiNN, with EFA"} and "Left out" not in text


def test_what_was_not_run_counts_among_the_seeds(tmp_path, fake, capsys):
    pytest.importorskip("matplotlib")
    runner.run(load(hosts=["mace", "painn"], variants=ALIKE), tmp_path / "out", hosts=["mace"])
    report = ["report", str(tmp_path / "out")]
    assert cli.main(report) == 0 and "Not run" not in capsys.readouterr().out  # of PaiNN nothing was
    (tmp_path / "out/pairs/quick/pairs/mace/with-efa/seed-1/run.json").unlink()
    shutil.rmtree(tmp_path / "out/pairs/quick/pairs/mace/without-efa")
    assert cli.main(report) == 0
    missing = ["without-efa/seed-0", "without-efa/seed-1", "with-efa/seed-1"]
    said = f"Not run yet, or not to the end: {', '.join(f'pairs/quick/pairs/mace/{run}' for run in missing)}."
    assert said.replace(" ", "") in capsys.readouterr().out.replace(" ", "").replace("\n", "")
    with (tmp_path / "out/table.csv").open(encoding="utf-8") as file:
        assert [(row["variant"], row["seeds_finished"], row["seeds_all"]) for row in csv.DictReader(file)] == [
            ("with EFA", "1", "2")
        ]


def test_structures_that_a_base_was_trained_on_are_counted(tmp_path, fake, capsys):
    path = sources.write(tmp_path / "made", "two_atoms", {"num_train": 8, "num_valid": 1, "num_test": 3, "num_scan": 0})
    known = {"source": "files", "train": str(path / "train.xyz"), "test": str(path / "test.xyz")}
    base = {
        "data": {
            "source": "files",
            "train": str(path / "test.xyz"),
            "valid": str(path / "valid.xyz"),
            "test": str(path / "valid.xyz"),
        }
    }
    study = load(seeds=[0], hosts=["mace"], variants=ALIKE, data={"pairs": known}, base=base)
    capsys.readouterr()
    runner.run(study, tmp_path / "out")
    assert "pairs: structures that are in the training set of the study's base, too: 3 of 3 in test;" in capsys.readouterr().out


def test_what_goes_on_from_a_base_waits_for_it(tmp_path, fake):
    records = run(tmp_path, base=BASE, variants=ALIKE)
    assert [record.variant for record in records] == ["base", "without EFA", "with EFA"]
    path = tmp_path / "out" / "runs"
    assert path.read_text().splitlines()[0] == "0 base"
    assert records[1].settings["base"]["training"]["num_epochs"] == 2 and records[0].settings["base"] is None  # tiny
    ran(tmp_path)
    run(tmp_path, base={**BASE, "data": {**BASE["data"], "seed": 3}}, variants=ALIKE)
    assert ran(tmp_path) == ["0 base", "0 with EFA", "0 without EFA"]
    jobs = [json.loads(job.read_text())["base"] for job in sorted((tmp_path / "out" / "pairs").rglob("job.json"))]
    assert jobs == [None, *[str(tmp_path / "out/pairs/tiny/base/mace/base/seed-0")] * 2]


def test_a_base_is_asked_for_no_dynamics_and_no_cost(tmp_path, fake):
    base = {"data": {"source": "files", "train": str(sources.write(tmp_path / "made", "two_atoms", {}) / "train.xyz")}}
    further = {"dynamics": {"set": "scan", "index": 1}, "cost": {"num_atoms": [10, 20]}}
    first, *others = run(tmp_path, base=base, variants=ALIKE, **further)  # the base's data have no scan
    assert (first.settings["dynamics"], first.settings["cost"]) == (None, None)
    assert [record.settings["dynamics"]["set"] for record in others] == ["scan"] * 2
    assert [record.settings["cost"]["num_atoms"] for record in others] == [[10, 20]] * 2


def test_elements_that_a_base_was_not_trained_on_are_refused(tmp_path, fake):
    base = {"data": {"source": "clusters", "num_atoms": 4}}
    with pytest.raises(EFAError, match="data: pairs: has He; the training set of the study's base has H only"):
        run(tmp_path, base=base, variants=ALIKE)
    assert ran(tmp_path) == []


def test_data_are_made_once_and_anew_for_other_options(tmp_path):
    options = {**sources.SOURCES["two_atoms"].tiny}
    folder = sources.write(tmp_path / "data", "two_atoms", options)
    first = split(folder)
    (folder / "train.xyz").touch()
    time = (folder / "train.xyz").stat().st_mtime_ns
    assert sources.write(folder, "two_atoms", options) == folder and (folder / "train.xyz").stat().st_mtime_ns == time
    sources.write(folder, "two_atoms", {**options, "seed": 1})
    assert split(folder)["train"] != first["train"]
    with pytest.raises(EFAError, match="no structure in valid"):
        sources.write(folder, "two_atoms", {**options, "num_valid": 0})
    sources.write(folder, "two_atoms", {**options, "num_test": 0})
    assert "test" not in sources.evaluation_sets(folder)


def test_data_whose_making_was_interrupted_are_made_again(tmp_path, monkeypatch):
    options = {**sources.SOURCES["two_atoms"].tiny}
    folder = sources.write(tmp_path / "data", "two_atoms", options)
    first = split(folder)

    def fail(*arguments, **keys):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ase.io.write", fail)
        sources.write(folder, "two_atoms", {**options, "seed": 1})
    sources.write(folder, "two_atoms", options)
    assert split(folder) == first


def test_an_environment_without_the_host_is_refused(tmp_path, monkeypatch):
    with pytest.raises(EFAError, match=r"nowhere has no nequip"):
        environments.find("nequip", {"nequip": tmp_path / "nowhere"})
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "DISTRIBUTIONS", {"nequip": "no-such-distribution"})
    with pytest.raises(EFAError, match=r"--python nequip=PATH"):
        environments.find("nequip")


INSTALL = r'pip install "efa-addons\[nequip,data\]"'


def test_an_environment_that_cannot_run_studies_is_refused(tmp_path, monkeypatch):
    python = tmp_path / ".tox/nequip/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ncase "$2" in *version*) echo 1;; *) echo "No module named rich" >&2; exit 1;; esac\n')
    python.chmod(0o755)
    with pytest.raises(EFAError, match=r"cannot run studies \(No module named rich\): there, " + INSTALL):
        environments.find("nequip", {"nequip": python})
    (tmp_path / "tox.ini").touch()  # tox's, left half made
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    monkeypatch.setattr(environments, "DISTRIBUTIONS", {"nequip": "no-such-distribution"})
    with pytest.raises(EFAError, match="cannot run studies"):
        environments.find("nequip")


def test_only_a_clone_is_put_before_what_others_have_installed(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    environment = Environment("mace", Path(sys.executable), "1")
    assert environment.variables["PYTHONPATH"] == str(environments.ROOT)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    assert "PYTHONPATH" not in environment.variables
    clone = tmp_path / "clone"
    (clone / "efa_addons").mkdir(parents=True)
    (clone / "tox.ini").touch()
    monkeypatch.chdir(clone)
    assert environments._of_tox("mace").is_relative_to(clone)


def test_the_environment_of_this_process_is_taken_first(monkeypatch):
    monkeypatch.setattr(environments, "DISTRIBUTIONS", {"mace": "torch"})
    assert environments.find("mace").python == Path(sys.executable)


def test_records_that_are_none_are_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(EFAError, match="format 0"):
        Record.read(tmp_path / "run.json")
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(EFAError, match="not the record"):
        Record.read(tmp_path / "run.json")


def test_a_job_survives_its_file(tmp_path):
    job = Job({"host": "mace"}, "data", "cpu", 1)
    job.save(tmp_path / "a" / "b")
    assert Job(**json.loads((tmp_path / "a" / "b" / "job.json").read_text())) == job
