"""Runs as forks of one process for each environment, which has imported torch and the host: 10 s and more that no run waits.

The process reads lines, folders of jobs, and answers each with a line of JSON when its run has ended. A run forks its training
in turn. Linux only, and no GPU: what CUDA or a pool of threads holds does not survive a fork.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any


def possible(device: str) -> bool:
    return device == "cpu" and sys.platform == "linux"


def stop(process: subprocess.Popen) -> None:
    """Ends a process that has a session of its own, and all that it began."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
    else:
        process.terminate()
    process.wait()


class Server:
    """The process of an environment, as its parent sees it.

    Args:
        command: what begins it: something that calls `serve`.
        environment: its variables.
        log: where it says why it could not begin.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        with log.open("w") as file:
            # a session of its own: `close` ends all runs and trainings below it, too
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=environment,
                start_new_session=True,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        os.set_blocking(self.answers.fileno(), False)
        self.codes: dict[str, int] = {}
        self.unread = b""

    def start(self, folder: Path) -> Forked:
        with suppress(BrokenPipeError):  # it has just died: `code` says so
            self.requests.write(f"{folder}\n".encode())
            self.requests.flush()
        return Forked(self, str(folder))

    def alive(self) -> bool:
        return self.process.poll() is None

    def code(self, folder: str) -> int | None:
        """Of the run there; the process's own where that died before the run was over."""
        died = self.process.poll()
        while part := self.answers.read(2**16):
            self.unread += part
        *lines, self.unread = self.unread.split(b"\n")
        self.codes |= dict(json.loads(line) for line in lines)
        if folder in self.codes or died is None:
            return self.codes.pop(folder, None)
        return died or 1

    def close(self) -> None:
        stop(self.process)
        with suppress(BrokenPipeError):
            self.requests.close()
        self.answers.close()


class Forked:
    """A run of a server, with what the runner asks of a process."""

    def __init__(self, server: Server, folder: str) -> None:
        self.server, self.folder = server, folder

    def poll(self) -> int | None:
        return self.server.code(self.folder)


class Training:
    """A command of this interpreter, run in a fork of this process as it would run alone."""

    def __init__(self, command: Sequence[str], log: IO[str], threads: int) -> None:
        self.process = start(_as_main, log, list(command), threads)

    def poll(self) -> int | None:
        return self.process.exitcode


def start(target: Callable[..., Any], log: IO[str], *args: Any) -> multiprocessing.process.BaseProcess:
    """A fork that calls `target` and writes to `log`."""
    process = multiprocessing.get_context("fork").Process(target=_logged, args=(target, log, *args))
    process.start()
    return process


def serve(target: Callable[[Path], int], log: str, modules: Sequence[str]) -> None:
    """Imports modules; for each folder that standard input names, forks a call of `target`, which returns the exit code.

    What a run prints goes to `log` in its folder. Ends, with everything it began, when the input does.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what modules print is no answer
    for name in modules:
        with suppress(Exception):  # the run will fail at the same, and say so
            importlib.import_module(name)
    running: dict[str, multiprocessing.process.BaseProcess] = {}
    unread = b""
    while True:
        ready = wait([0, *(process.sentinel for process in running.values())])
        if 0 in ready:
            part = os.read(0, 2**16)
            if not part:
                os.killpg(0, signal.SIGTERM)
            *lines, unread = (unread + part).split(b"\n")
            for line in lines:
                folder = Path(os.fsdecode(line))
                with (folder / log).open("w") as file:
                    running[str(folder)] = start(_exit_with, file, target, folder)
        for name in [name for name, process in running.items() if process.exitcode is not None]:
            answers.write(json.dumps([name, running.pop(name).exitcode]) + "\n")
            answers.flush()


def _logged(target: Callable[..., Any], log: IO[str], *args: Any) -> None:
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", 1, closefd=False)
    target(*args)


def _exit_with(target: Callable[[Path], int], folder: Path) -> None:
    os.chdir(folder)
    sys.exit(target(folder))


def _as_main(command: Sequence[str], threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    if list(command[:2]) == [sys.executable, "-m"]:
        sys.argv = list(command[2:])
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(command)
        runpy.run_path(command[0], run_name="__main__")
