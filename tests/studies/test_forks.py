"""Runs and trainings as forks, with scripts in place of hosts."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from efa_addons.studies import forks

pytestmark = pytest.mark.skipif(not forks.possible("cpu"), reason="forks are for Linux")

# imports a module that says so in the server's folder; a run leaves its process's parent, and fails where it is told to
SERVER = """
import os, sys, time
from pathlib import Path
from efa_addons.studies import forks

def run(folder):
    print("at work in", os.getcwd(), flush=True)
    command = (folder / "command").read_text()
    (folder / "parent").write_text(f"{os.getppid()} {os.getpid()}")
    if command == "sleep":
        time.sleep(600)
    if command == "die":
        os.kill(os.getppid(), 9)
        time.sleep(600)
    return int(command)

forks.serve(run, "log.txt", ["imported", "no_such_module"])
"""
SECONDS = 30.0


@pytest.fixture
def server(tmp_path):
    (tmp_path / "imported.py").write_text(
        f"from pathlib import Path\nprint('noise')\nPath({str(tmp_path / 'imports')!r}).open('a').write('once')\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(Path(forks.__file__).parents[2])])
    started = forks.Server([sys.executable, "-c", SERVER], {**os.environ, "PYTHONPATH": paths}, tmp_path / "server.log")
    yield started
    started.close()


def job(tmp_path: Path, name: str, command: str) -> Path:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "command").write_text(command)
    return folder


def code(running) -> int:
    end = time.monotonic() + SECONDS
    while (found := running.poll()) is None:
        assert time.monotonic() < end, "it does not end"
        time.sleep(0.02)
    return found


def process(pid: str) -> str:
    """A letter for the state of a process; Z: it has ended, and nobody has asked; empty: it is gone."""
    stat = Path("/proc", pid, "stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""


def parent_and_run(folder: Path) -> list[str]:
    end = time.monotonic() + SECONDS
    while not (path := folder / "parent").exists() or " " not in path.read_text():
        assert time.monotonic() < end, path
        time.sleep(0.02)
    return path.read_text().split()


def test_runs_of_a_server_share_its_imports_and_have_codes_and_logs_of_their_own(tmp_path, server):
    folders = [job(tmp_path, "a", "0"), job(tmp_path, "b", "3")]
    assert [code(running) for running in [server.start(folder) for folder in folders]] == [0, 3]
    assert (tmp_path / "imports").read_text() == "once"
    assert {parent_and_run(folder)[0] for folder in folders} == {str(server.process.pid)}
    for folder in folders:
        assert (folder / "log.txt").read_text() == f"at work in {folder}\n"


def test_closing_a_server_ends_its_runs(tmp_path, server):
    folder = job(tmp_path, "a", "sleep")
    running = server.start(folder)
    _, run = parent_and_run(folder)
    assert running.poll() is None and server.alive() and process(run) == "S"
    server.close()
    end = time.monotonic() + SECONDS
    while process(run) not in ("", "Z"):
        assert time.monotonic() < end, "it goes on"


def test_a_server_that_dies_fails_its_runs(tmp_path, server):
    running = [server.start(job(tmp_path, "a", "sleep")), server.start(job(tmp_path, "b", "die"))]
    assert [code(one) for one in running] == [-9, -9]
    assert not server.alive()
    assert code(server.start(job(tmp_path, "c", "0"))) == -9


@pytest.mark.parametrize("as_module", [True, False])
def test_a_training_is_what_its_command_is_alone(tmp_path, monkeypatch, as_module):
    pytest.importorskip("torch")
    script = tmp_path / "training.py"
    script.write_text(
        "import sys, torch\nif __name__ == '__main__':\n"
        "    print(sys.argv[1:], torch.get_num_threads())\n    sys.exit(int(sys.argv[-1]))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = [sys.executable, "-m", "training"] if as_module else [str(script)]
    with (tmp_path / "log").open("w") as log:
        training = forks.Training([*command, "--lr", "5"], log, 1)
    assert code(training) == 5
    assert (tmp_path / "log").read_text() == "['--lr', '5'] 1\n"
