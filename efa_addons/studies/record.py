"""run.json: what is kept of one training, and all that a report is made of. Energies eV, forces eV/Å, times s, memory MiB."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from efa_addons.errors import EFAError

FILE = "run.json"
CELLS = "cells.json"  # in a study's folder: the `Cell.name` of all cells that the study has as it stands
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
        return write_whole(folder / FILE, asdict(self))

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


class Missing(NamedTuple):
    """A run that a study has and that has no record, though others of its host have."""

    folder: Path
    study: str
    size: str
    data: str
    seed: int


def read_all(folder: Path) -> tuple[dict[Path, Record], list[Path], list[Missing]]:
    """All records below a folder, by their paths and in that order; paths of those that are no longer of their study; and
    what is missing.

    A study's folder tells data, variants and seeds that it has (`CELLS`), whichever the host; where none tells, all are of it.
    """
    studies = {path.parent: _cells(path) for path in sorted(folder.rglob(CELLS))}
    places = {study: {(data, *rest) for data, _, *rest in cells} for study, cells in studies.items()}  # whichever the host
    found, left = {}, []
    seen: dict[Path, dict[str, Record]] = {study: {} for study in studies}  # host -> one of its records
    for path in sorted(folder.rglob(FILE)):
        study = next((parent for parent in path.parents if parent in studies), None)
        if study is not None:
            data, _, *rest = path.parent.relative_to(study).parts
            if (data, *rest) not in places[study]:
                left.append(path)
                continue
        found[path] = record = Record.read(path)
        if study is not None:
            seen[study][record.host] = record
    missing = []
    for study, cells in studies.items():
        for data, host, variant, seed in cells:
            here = study / data / host / variant / seed
            if host in seen[study] and here / FILE not in found:
                one = seen[study][host]
                missing.append(Missing(here, one.study, one.size, data, int(seed.removeprefix("seed-"))))
    return found, left, missing


def _cells(path: Path) -> list[tuple[str, ...]]:
    """Data, host, variant and seed of each."""
    try:
        return [tuple(name.split("/")) for name in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, AttributeError, TypeError) as error:
        raise EFAError(
            f"{path} is not the list of a study's runs ({error!r}): run the study again, which writes it."
        ) from error


def write_whole(path: Path, content: Any) -> Path:
    """JSON, all of it or nothing."""
    draft = path.parent / f".{path.name}"
    draft.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(draft, path)
    return path


def same_split(records: Iterable[Record]) -> bool:
    """Whether all were trained and evaluated on the same files."""
    return len({json.dumps(dict(record.split), sort_keys=True) for record in records}) <= 1
