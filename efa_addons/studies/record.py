"""run.json: what is kept of one training, and all that a report is made of. Energies eV, forces eV/Å, times s, memory MiB."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from efa_addons.errors import EFAError

FILE = "run.json"
CELLS = "cells.json"  # in a study's folder: the `Cell.place` of all cells that the study has as it stands
FORMAT = 1


@dataclass(frozen=True)
class Profile:
    """Energies (eV) along a scan, the model's and the reference's; `scan` holds the fields of `sources.Scan`."""

    scan: Mapping[str, Any]
    x: tuple[float, ...]
    energies: tuple[float, ...]
    reference: tuple[float, ...]

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Profile:
        """From its fields, as JSON has them."""
        return cls(entry["scan"], *(tuple(entry[key]) for key in ("x", "energies", "reference")))


@dataclass(frozen=True)
class Record:
    """One training of a study.

    Args:
        study, size, data, host, variant, seed: which one; `host_label` and `variant` as in tables.
        units: of the study, "eV" or "arbitrary".
        title, question: of the study.
        settings: what decided it: model, training, efa (null: without), command.
        split: file of the data set -> digest of its content. Equal rows of a table must have equal splits.
        versions: package -> version.
        hardware: one line.
        status: "finished" or "failed".
        error: the end of the log of a failed one.
        num_parameters: of the model.
        seconds: "training" (training steps of all epochs), "total" (with start, validation and evaluation).
        peak_memory: MiB, resident set of the training process.
        metrics: evaluation set -> energy_mae, energy_rmse (eV per structure), energy_mae_per_atom, energy_rmse_per_atom
            (eV/atom), force_mae, force_rmse (eV/Å, over components), num (structures).
        profiles: evaluation set that is a scan -> curve.
        curve: for each validation: epoch, seconds (of training steps so far), energy_mae (eV per structure), force_mae.
        dynamics: what `dynamics.nve` found; empty where the study asks for none.
        cost: what `cost.measure` found; empty where the study asks for none.
        literature: the study's rows of others' figures.
        variants: labels of the study's variants, in its order, which is that of the tables; none: they stand as they are found.
    """

    study: str
    size: str
    data: str
    host: str
    host_label: str
    variant: str
    seed: int
    units: str
    title: str
    question: str
    settings: Mapping[str, Any]
    split: Mapping[str, str]
    versions: Mapping[str, str]
    hardware: str
    status: str
    error: str = ""
    num_parameters: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    peak_memory: float = 0.0
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    dynamics: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)
    literature: tuple[Mapping[str, Any], ...] = ()
    variants: tuple[str, ...] = ()
    format: int = FORMAT

    @property
    def finished(self) -> bool:
        return self.status == "finished"

    def save(self, folder: Path) -> Path:
        """Writes run.json, all of it or nothing."""
        path = folder / FILE
        draft = folder / f".{FILE}"
        draft.write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, path)
        return path

    @classmethod
    def read(cls, path: Path) -> Record:
        """The record of a run.json."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.get("format") != FORMAT:
                raise EFAError(
                    f"{path} has format {content.get('format')}, expected {FORMAT}: remove it, and run the study again."
                )
            profiles = {name: Profile.read(entry) for name, entry in content["profiles"].items()}
            lists = {key: tuple(content.get(key, ())) for key in ("curve", "literature", "variants")}
            return cls(**{**content, "profiles": profiles, **lists})
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
            raise EFAError(f"{path} is not the record of a run ({error!r}): remove it, and run the study again.") from error


def read_all(folder: Path) -> tuple[dict[Path, Record], list[Path]]:
    """All records below a folder, by their paths and in that order; and paths of those that are no longer of their study.

    A study's folder tells data, variants and seeds that it has (`CELLS`), whichever the host; where none tells, all are of it.
    """
    studies = {path.parent: {*map(tuple, json.loads(path.read_text()))} for path in folder.rglob(CELLS)}
    found, left = {}, []
    for path in sorted(folder.rglob(FILE)):
        study = next((parent for parent in path.parents if parent in studies), None)
        data, *below = path.parts if study is None else path.relative_to(study).parts  # host, variant, seed, run.json
        if study is None or (data, *below[1:-1]) in studies[study]:
            found[path] = Record.read(path)
        else:
            left.append(path)
    return found, left


def same_split(records: Iterable[Record]) -> bool:
    """Whether all were trained and evaluated on the same files."""
    return len({json.dumps(dict(record.split), sort_keys=True) for record in records}) <= 1
