"""The EFA options of `efa-mace-train`: flags `--efa_…` and the section `efa:` of MACE's YAML file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from efa_addons.config import AUTO, EFAConfig, check_types
from efa_addons.errors import EFAError, refuse_unknown_flags, unknown_names


@dataclass(frozen=True)
class TrainingOptions:
    """How EFA is trained; beside EFAConfig, which says what it is."""

    lr_factor: float = dataclasses.field(default=1.0, metadata={"help": "factor on the learning rate for EFA's parameters"})
    weight_decay: float | None = dataclasses.field(
        default=None, metadata={"help": "weight decay of EFA's parameters; null: that of the run"}
    )
    freeze_base: bool = dataclasses.field(default=False, metadata={"help": "train EFA alone, keep all other parameters"})

    def __post_init__(self) -> None:
        check_types(self)
        if self.lr_factor <= 0 or (self.weight_decay or 0) < 0:
            raise EFAError(
                f"lr_factor must be positive and weight_decay 0 or more, got {self.lr_factor} and {self.weight_decay}."
            )


_CLASSES = (EFAConfig, TrainingOptions)
TRAINING_OPTIONS = tuple(field.name for field in dataclasses.fields(TrainingOptions))  # which `efa-addons insert` leaves out

# Where a training set is at hand the sum over atoms is normalised: at MACE's usual widths and learning rate the first steps
# with an unnormalised one are wild.
_DEFAULTS = {"normalization": AUTO}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--efa` and one flag for each option; their values are written as in YAML (null, true, [0, 1], 1e-5)."""
    group = parser.add_argument_group("EFA", "Euclidean fast attention; also as a section `efa:` of the YAML file")
    group.add_argument("--efa", nargs="?", const="true", default=None, help="switch EFA on (or off: false)")
    for options in _CLASSES:
        for field in dataclasses.fields(options):
            text = f"{field.metadata['help']} (default: {_as_yaml(_DEFAULTS.get(field.name, field.default))})"
            group.add_argument(f"--efa_{field.name}", default=argparse.SUPPRESS, metavar="VALUE", help=text)


def refuse_unknown(argv: Iterable[str]) -> None:
    """Raises for a flag, or a key of the YAML file, that begins with `efa` and is none."""
    known = ["--efa", *(f"--efa_{field.name}" for options in _CLASSES for field in dataclasses.fields(options))]
    refuse_unknown_flags("EFA flag", argv, known, "--efa")


def _from_yaml(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise EFAError(f"{where} must be YAML, lists in quotes in a shell ({' '.join(str(error).split())}).") from error


def _as_yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def take_section(argv: list[str], folder: Path) -> tuple[list[str], Any]:
    """Cuts the section `efa:` out of the YAML file that `--config` names.

    MACE's own parser knows flat keys only, and no lists in them. Returns the arguments, with a file in `folder` in place of one
    that had the section or lists, and the section (None without one).
    """
    argv, section = list(argv), None
    for i, argument in enumerate(argv):
        name, equals, value = argument.partition("=")
        if name != "--config":
            continue
        path = Path(value if equals else argv[i + 1] if i + 1 < len(argv) else "")
        if not path.is_file():
            continue  # MACE's parser says what is wrong
        content = _from_yaml(path.read_text(encoding="utf-8"), str(path))
        if not isinstance(content, Mapping):
            continue
        refuse_unknown([f"--{key}" for key in content if key != "efa"])
        rest = {key: entry for key, entry in content.items() if key != "efa"}
        rest |= {key: json.dumps(entry) for key, entry in rest.items() if key.startswith("efa_") and isinstance(entry, list)}
        if rest == content:
            continue
        if "efa" in content:
            section = {} if content["efa"] is None else content["efa"]  # all its options commented out, say: it is there
        place = folder / path.name
        place.write_text(yaml.safe_dump(rest, sort_keys=False), encoding="utf-8")  # heads are numbered in their order
        argv[i : i + (1 if equals else 2)] = ["--config", str(place)]
    return argv, section


def options_from(args: argparse.Namespace, section: Any) -> tuple[EFAConfig | None, TrainingOptions, dict[str, Any] | None]:
    """EFAConfig (None: EFA is off) and TrainingOptions from the flags and the YAML section, and which options of EFAConfig were
    given there (None: false was); flags win.

    EFA is on when `--efa`, any `--efa_…` flag or the section is given, unless `--efa false` or `efa: false` says otherwise.
    """
    switch = _from_yaml(args.efa, "--efa") if isinstance(args.efa, str) else args.efa
    if not isinstance(switch, bool | None):  # 0 is equal to False, and is not False
        raise EFAError(f"--efa takes true or false, got '{args.efa}'.")
    if not isinstance(section, Mapping | bool | None):
        raise EFAError(f"the section efa: must be true, false or a mapping of options, got {section!r}.")
    given = dict(section) if isinstance(section, Mapping) else {}
    flags = {k.removeprefix("efa_"): v for k, v in vars(args).items() if k.startswith("efa_")}
    given.update({name: _from_yaml(v, f"--efa_{name}") if isinstance(v, str) else v for name, v in flags.items()})
    of_efa = [field.name for field in dataclasses.fields(EFAConfig)]
    known = [*of_efa, *TRAINING_OPTIONS]
    unknown = [str(name) for name in given if name not in known]
    if unknown:
        raise unknown_names("EFA option", unknown, known)
    training = TrainingOptions(**{name: v for name, v in given.items() if name in TRAINING_OPTIONS})
    given_of_efa = {name: v for name, v in given.items() if name in of_efa}
    config = EFAConfig(**{**_DEFAULTS, **given_of_efa})
    if switch is None and isinstance(section, bool):
        switch = section
    if switch is None and (section is not None or given):
        switch = True
    if given and not switch:
        print(f"EFA is switched off, and its options are not used: {', '.join(given)}", file=sys.stderr)  # MACE logs later
    return (config if switch else None), training, (None if switch is False else given_of_efa)
