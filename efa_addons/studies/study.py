"""What a comparative study is: the typed content of a file in `configs/studies/`.

    study = Study.load("configs/studies/two_atoms.yaml", size="quick")

Energies eV, lengths Å.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from efa_addons.config import EFAConfig, check_types
from efa_addons.errors import EFAError, unknown_names
from efa_addons.studies.common import MAX_SEED
from efa_addons.studies.cost import Cost
from efa_addons.studies.dynamics import Dynamics
from efa_addons.studies.hosts import NAMES as HOSTS
from efa_addons.studies.sources import SOURCES, Source

LITERATURE = ("data", "label", "source", "note", "metrics")  # keys of others' figures
SIZES = ("quick", "paper", "tiny")
# one seed, two epochs and a handful of structures: that every step runs, not what it finds
TINY: dict[str, Any] = {"seeds": [0], "training": {"num_epochs": 2, "batch_size": 4}, "model": {"num_features": 4}}
TINY_MEASURES: dict[str, dict[str, Any]] = {
    "dynamics": {"picoseconds": 0.002, "seeds": TINY["seeds"]},
    "cost": {"num_atoms": [10, 20], "repeats": 1},
}
BASE = "base"  # name of its data and label of its variant
# of an option by its default: in words, and the types of values
_KINDS: dict[type, tuple[str, tuple[type, ...]]] = {
    int: ("an integer", (int,)),
    float: ("a number", (int, float)),
    str: ("text", (str,)),
}
T = TypeVar("T")


@dataclass(frozen=True)
class ModelSettings:
    """A model in words that every host knows.

    Args:
        cutoff: Å.
        num_layers: interaction layers.
        num_features: channels of each degree; PaiNN: n_atom_basis.
        max_degree: of the features; PaiNN always has 1.
    """

    cutoff: float = 5.0
    num_layers: int = 2
    num_features: int = 16
    max_degree: int = 1

    def __post_init__(self) -> None:
        check_types(self)
        _positive(self, "cutoff", "num_layers", "num_features")
        if self.max_degree < 0:
            raise EFAError(f"max_degree must be 0 or more, got {self.max_degree}.")


@dataclass(frozen=True)
class TrainingSettings:
    """How it is trained: Adam with a learning rate that decays to 2 % of `lr`, on energies and forces.

    A training set smaller than `batch_size` is one batch; of a larger one MACE leaves out the batch that is not full.
    """

    num_epochs: int = 50
    batch_size: int = 8
    lr: float = 0.01

    def __post_init__(self) -> None:
        check_types(self)
        _positive(self, "num_epochs", "batch_size", "lr")


def _positive(settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not 0 < value < math.inf:
            raise EFAError(f"{name} must be a positive number, got {value}.")


@dataclass(frozen=True)
class Variant:
    """One of the models to compare.

    Args:
        label: in tables and pictures.
        efa: options of EFAConfig; none: without EFA.
        model: what differs from the study's model, for example a larger cutoff.
        hosts: those that have this variant; none given: all of the study.
    """

    label: str
    efa: Mapping[str, Any] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    hosts: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return re.sub(r"[^a-z0-9.]+", "-", self.label.lower()).strip("-.")


@dataclass(frozen=True)
class DataSpec:
    """A data set: a source of `efa_addons.studies.sources`, and its options."""

    name: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """What every model of a study goes on from: trained without EFA, once for each host and seed, on data of its own."""

    data: DataSpec
    training: TrainingSettings


@dataclass(frozen=True)
class Cell:
    """One training: a data set, a host, a variant and a seed, and what is asked of the model then.

    Args:
        base: the cell of the model that it goes on from; none: from scratch.
        dynamics, cost: those of the study; a base has none.
    """

    data: DataSpec
    host: str
    variant: Variant
    model: ModelSettings
    training: TrainingSettings
    seed: int
    base: Cell | None = None
    dynamics: Dynamics | None = None
    cost: Cost | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.data.name}/{self.host}/{self.variant.name}/seed-{self.seed}"


@dataclass(frozen=True)
class Study:
    """Data sets x hosts x variants x seeds, and the budget of each training.

    Args:
        name: of the file.
        title, question: of the report.
        units: "eV", or "arbitrary" where the energies are.
        literature: rows of the tables that are others' figures: data, label, source and metrics.
        host_training: what differs of the training of all models of a host.
        base: what the models go on from; none given: they are trained from scratch.
        dynamics: molecular dynamics with the trained models; none given: none.
        cost: time and memory against the number of atoms; none given: not measured.
    """

    name: str
    size: str
    title: str
    question: str
    data: tuple[DataSpec, ...]
    variants: tuple[Variant, ...]
    model: ModelSettings
    training: TrainingSettings
    hosts: tuple[str, ...] = HOSTS
    seeds: tuple[int, ...] = (0, 1, 2)
    units: str = "eV"
    literature: tuple[Mapping[str, Any], ...] = ()
    host_training: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    base: Base | None = None
    dynamics: Dynamics | None = None
    cost: Cost | None = None

    @classmethod
    def load(cls, path: Path | str, size: str = "quick") -> Study:
        """Reads and checks a file; `size` is one of `SIZES`. Errors name file and key."""
        path = Path(path)
        if size not in SIZES:
            raise unknown_names("size", [size], SIZES)
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _OneOfEach)
            return cls.from_dict(path.stem, content, size, path.absolute().parent)
        except (EFAError, yaml.YAMLError, UnicodeError) as error:
            raise EFAError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, name: str, content: Any, size: str, folder: Path | None = None) -> Study:
        """The study of a mapping with the keys of a file; `folder`: where relative paths begin, none: they are refused."""
        content = dict(_mapping("the file", content))
        sizes = _mapping("sizes", content.pop("sizes", {}))
        _known("size", sizes, SIZES[:2])
        content = _merged(content, _mapping(f"sizes: {size}", sizes.get(size) or {}))
        if size == "tiny":
            content = _merged({**content, "host_training": {}}, TINY)
            for key, smaller in TINY_MEASURES.items():
                if content.get(key) is not None:
                    content[key] = {**_mapping(key, content[key]), **smaller}
        keys = [entry.name for entry in dataclasses.fields(cls) if entry.name not in ("name", "size")]
        _known("key", content, keys)
        missing = [key for key in ("title", "question", "data", "variants") if key not in content]
        if missing:
            raise EFAError(f"missing: {', '.join(missing)}.")
        for key in ("title", "question"):
            if not isinstance(content[key], str):
                raise EFAError(f"{key} must be text, got {content[key]!r}.")
        model = _typed(ModelSettings, "model", content.get("model", {}))
        training = _typed(TrainingSettings, "training", content.get("training", {}))
        hosts = _hosts("hosts", content.get("hosts", HOSTS), HOSTS)
        seeds = content.get("seeds", cls.seeds)
        if not isinstance(seeds, list | tuple) or not seeds or not all(map(_is_seed, seeds)):
            raise EFAError(f"seeds must be a list of integers, 0 to {MAX_SEED}, got {seeds!r}.")
        units = content.get("units", "eV")
        if units not in ("eV", "arbitrary"):
            raise EFAError(f"units must be eV or arbitrary, got {units!r}.")
        base, dynamics, cost = (content.get(key) for key in ("base", "dynamics", "cost"))  # {}: as they are by default
        base = None if base is None else _base(base, training, size, folder)
        data = _all_data(content["data"], size, folder, base)
        return cls(
            name=name,
            size=size,
            title=content["title"],
            question=content["question"],
            data=data,
            variants=_variants(content["variants"], hosts, model, base),
            model=model,
            training=training,
            hosts=hosts,
            seeds=tuple(seeds),
            units=units,
            literature=_literature(content.get("literature") or (), data),
            host_training=_host_training(content.get("host_training", {}), training),
            base=base,
            dynamics=None if dynamics is None else _dynamics(dynamics, hosts, content["variants"], seeds),
            cost=None if cost is None else _typed(Cost, "cost", cost),
        )

    def cells(self) -> Iterator[Cell]:
        """All trainings, seeds outermost: an interrupted study has compared something."""
        for seed in self.seeds:
            bases = {host: self._base_cell(host, seed) for host in self.hosts}
            yield from (cell for cell in bases.values() if cell is not None)
            for data in self.data:
                for host in self.hosts:
                    for variant in self.variants:
                        if variant.hosts is None or host in variant.hosts:
                            model = dataclasses.replace(self.model, **variant.model)
                            training = dataclasses.replace(self.training, **self.host_training.get(host, {}))
                            yield Cell(data, host, variant, model, training, seed, bases[host], self.dynamics, self.cost)

    def _base_cell(self, host: str, seed: int) -> Cell | None:
        if self.base is None:
            return None
        training = dataclasses.replace(self.base.training, **self.host_training.get(host, {}))
        return Cell(self.base.data, host, Variant(BASE), self.model, training, seed)


class _OneOfEach(yaml.SafeLoader):
    """Keys that stand twice are errors: of two variants of the same name the first would be gone."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise EFAError(
                        f"line {key.start_mark.line + 1}: {key.value} stands here a second time. Remove or rename one."
                    )
                seen.add(key.value)
        return node


def _host_training(content: Any, training: TrainingSettings) -> dict[str, Mapping[str, Any]]:
    _known("host of host_training", _mapping("host_training", content), HOSTS)
    for host, changes in content.items():
        _typed(TrainingSettings, f"host_training of {host}", {**dataclasses.asdict(training), **_mapping(host, changes)})
    return dict(content)


def _base(content: Any, training: TrainingSettings, size: str, folder: Path | None) -> Base:
    content = dict(_mapping("base", content))
    _known("key of base", content, ("data", "training"))
    if "data" not in content:
        raise EFAError("base: missing: data.")
    changed = {} if size == "tiny" else _mapping("base: training", content.get("training", {}))
    return Base(
        _data(BASE, content["data"], size, folder),
        _typed(TrainingSettings, "base: training", {**dataclasses.asdict(training), **changed}),
    )


def _dynamics(content: Any, hosts: Sequence[str], variants: Mapping[str, Any], seeds: Sequence[int]) -> Dynamics:
    found = _typed(Dynamics, "dynamics", content)
    _known("host of dynamics", found.hosts, hosts)
    _known("variant of dynamics", found.variants, variants)
    if not {*found.seeds} & {*seeds}:
        raise EFAError(f"dynamics: seeds must be some of the study's {list(seeds)}, got {list(found.seeds)}.")
    return found


def _variants(content: Any, hosts: tuple[str, ...], model: ModelSettings, base: Base | None) -> tuple[Variant, ...]:
    found = tuple(_variant(*entry, hosts, model) for entry in _mapping("variants", content).items())
    folders: dict[str, str] = {}
    for variant in found:
        other = folders.setdefault(variant.name, variant.label)
        if not variant.name or other != variant.label:
            raise EFAError(f"variants {other!r} and {variant.label!r} would have the same folder {variant.name!r}. Rename one.")
        if base is not None and variant.model:
            raise EFAError(f"variant {variant.label}: its model is that of the study's base, and cannot differ from it.")
    return found


def _all_data(content: Any, size: str, folder: Path | None, base: Base | None) -> tuple[DataSpec, ...]:
    found = tuple(_data(*entry, size, folder) for entry in _mapping("data", content).items())
    folders: dict[str, str] = {}
    for spec in found:
        if (other := folders.setdefault(spec.name.lower(), spec.name)) != spec.name:
            raise EFAError(
                f"data {other} and {spec.name} differ in case only: not every disk tells their folders apart. Rename one."
            )
    if base is not None and BASE in folders:
        raise EFAError(f"data cannot be called {BASE}: that is what the study's base is called. Take another name.")
    return found


def _data(name: Any, content: Any, size: str, folder: Path | None) -> DataSpec:
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise EFAError(
            f"data: the name of a data set must be text of letters, digits, _, . and -, not begun by . or -, got {name!r}: "
            "rename it (a number: put it in quotes)."
        )
    options = dict(_mapping(f"data: {name}", content))
    source = options.pop("source", name)
    if source not in SOURCES:
        raise unknown_names("source", [source], SOURCES)
    chosen: Source = SOURCES[source]
    if size == "tiny":
        options |= chosen.tiny
    _known(f"option of {source}", options, chosen.options)
    for key, value in options.items():
        if expected := _other_kind(key, value, chosen.options[key]):
            raise EFAError(f"data: {name}: {key} must be {expected}, got {value!r}.")
    if missing := [key for key, default in chosen.options.items() if default is inspect.Parameter.empty and key not in options]:
        raise EFAError(f"data: {name}: missing: {', '.join(missing)}.")
    for key in [key for key in chosen.files if options.get(key) is not None]:
        options[key] = _located(f"data: {name}: {key}", options[key], folder)
    return DataSpec(name, source, options)


def _other_kind(key: str, value: Any, default: Any) -> str:
    """What an option of a source must be, by its default, where the value is something else."""
    if key == "seed" and not _is_seed(value):
        return f"an integer, 0 to {MAX_SEED}"
    if isinstance(default, tuple):
        word, kinds = _KINDS[type(default[0])]
        fits = isinstance(value, list | tuple) and value and all(type(entry) in kinds for entry in value)
        return "" if fits else f"a list, each entry {word}"
    if type(default) in _KINDS:
        word, kinds = _KINDS[type(default)]
        return "" if type(value) in kinds else word
    return ""


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_SEED


def _located(where: str, value: Any, folder: Path | None) -> Any:
    """The absolute path of a file that exists, or of each in a mapping. Relative ones begin at `folder`."""
    if isinstance(value, Mapping):
        return {key: _located(f"{where}: {key}", entry, folder) for key, entry in value.items()}
    if not isinstance(value, str):
        raise EFAError(f"{where} must be the path of a file, got {value!r}.")
    path = Path(value).expanduser()
    if not path.is_absolute() and folder is None:
        raise EFAError(f"{where} must be an absolute path where the study was not read from a file, got {value!r}.")
    path = path if folder is None else folder / path
    if not path.is_file():
        raise EFAError(f"{where}: there is no file {path}. Relative paths begin at the folder of the study's file.")
    return str(path)


def _literature(content: Any, data: Sequence[DataSpec]) -> tuple[Mapping[str, Any], ...]:
    """Entries with a label and figures, of one of the data sets or of all."""
    if not isinstance(content, list | tuple):
        raise EFAError(f"literature must be a list of mappings, got {content!r}.")
    for entry in content:
        _known("key of literature", _mapping("an entry of literature", entry), LITERATURE)
        if "label" not in entry:
            raise EFAError(f"an entry of literature needs a label, got {dict(entry)}.")
        if "data" in entry:
            _known("data of literature", [entry["data"]], [spec.name for spec in data])
        for name, value in _mapping(f"metrics of {entry['label']}", entry.get("metrics", {})).items():
            for number in value.values() if isinstance(value, Mapping) else [value]:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise EFAError(f"{name} of {entry['label']} must be a number (as 6.0e-4), got {number!r}.")
    return tuple(content)


def _hosts(where: str, content: Any, known: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(content, list | tuple) or not content:
        raise EFAError(f"{where} must be a list of some of {', '.join(known)}, got {content!r}.")
    _known("host", content, known)
    return tuple(content)


def _variant(label: Any, content: Any, hosts: tuple[str, ...], model: ModelSettings) -> Variant:
    if not isinstance(label, str):
        raise EFAError(f"the label of a variant must be text, got {label!r}: put it in quotes.")
    options = dict(_mapping(f"variants: {label}", content or {}))
    if label == BASE:
        raise EFAError(f"a variant cannot be called {BASE}: that is what the study's base is called. Take another label.")
    _known(f"key of variant {label}", options, ("efa", "model", "hosts"))
    efa = options.get("efa")
    if "efa" in options:
        if efa is None:
            raise EFAError(f"efa of {label} is empty: {{}} takes its defaults; for a model without EFA leave the key out.")
        EFAConfig.from_dict(_mapping(f"efa of {label}", efa))
    _typed(ModelSettings, f"model of {label}", {**dataclasses.asdict(model), **_mapping(label, options.get("model", {}))})
    chosen = options.get("hosts")
    return Variant(label, efa, options.get("model", {}), None if chosen is None else _hosts(f"hosts of {label}", chosen, hosts))


def _typed(kind: type[T], where: str, content: Any) -> T:
    content = _mapping(where, content)
    _known(f"key of {where}", content, [entry.name for entry in dataclasses.fields(kind)])  # type: ignore[arg-type]
    return kind(**content)


def _mapping(where: str, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise EFAError(f"{where} must be a mapping, got {content!r} ({type(content).__name__}).")
    return content


def _known(what: str, given: Any, known: Any) -> None:
    unknown = [str(key) for key in given if key not in known]
    if unknown:
        raise unknown_names(what, unknown, known)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid upon `base`, mapping by mapping."""
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result
