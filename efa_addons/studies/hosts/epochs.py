"""A record of epochs for hosts that train with Lightning."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "epochs.jsonl"


class EpochRecord:
    """Lightning hooks that append a JSON line per epoch to `path`: its number, the seconds its training steps took, and errors.

    NequIP and SchNetPack know Lightning by two names: to be combined with the Callback of either.
    """

    METRICS: Mapping[str, str] = {}  # name in the record -> name of the validation metric

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
        found = {
            key: float(trainer.callback_metrics[name]) for key, name in self.METRICS.items() if name in trainer.callback_metrics
        }
        with self.path.open("a") as file:
            file.write(json.dumps({"epoch": trainer.current_epoch, "time": self.seconds, **found}) + "\n")


def epochs_done(folder: Path) -> int:
    return len(_entries(folder))


def seconds_per_epoch(folder: Path) -> float:
    times = [entry["time"] for entry in _entries(folder)]
    return sum(times) / len(times) if times else float("nan")


def curve(folder: Path) -> list[dict[str, float]]:
    seconds, found = 0.0, []
    for entry in _entries(folder):
        seconds += entry["time"]
        if "force_mae" in entry:
            errors = {key: entry[key] for key in ("energy_mae", "force_mae")}
            found.append({"epoch": entry["epoch"] + 1, "seconds": seconds, **errors})
    return found


def _entries(folder: Path) -> list[dict[str, float]]:
    """The record of each finished epoch; a line being written is left out."""
    path = folder / FILE
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
