"""A record of epochs for hosts that train with Lightning."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

FILE = "epochs.jsonl"


class EpochRecord:
    """Lightning hooks that append a JSON line per epoch to `path`: its number, and the seconds its training steps took.

    NequIP and SchNetPack know Lightning by two names: to be combined with the Callback of either.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.seconds = 0.0
        self.began = 0.0

    def on_train_epoch_start(self, *args: Any, **options: Any) -> None:
        self.seconds = 0.0

    def on_train_batch_start(self, *args: Any, **options: Any) -> None:
        self.began = time.monotonic()

    def on_train_batch_end(self, *args: Any, **options: Any) -> None:
        self.seconds += time.monotonic() - self.began

    def on_train_epoch_end(self, trainer: Any, *args: Any, **options: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"epoch": trainer.current_epoch, "time": self.seconds}) + "\n")


def epochs_done(folder: Path) -> int:
    return len(_times(folder))


def seconds_per_epoch(folder: Path) -> float:
    times = _times(folder)
    return sum(times) / len(times) if times else float("nan")


def _times(folder: Path) -> list[float]:
    """Seconds of each finished epoch; a line being written is left out."""
    path = folder / FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line)["time"] for line in lines if line.endswith("\n")]
