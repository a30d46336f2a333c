"""`efa-addons`: one command, a few verbs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import yaml

from efa_addons.config import AUTO, EFAConfig
from efa_addons.errors import EFAError, how_to_install, refuse_unknown_flags
from efa_addons.nn.checks import largest_distance, refuse_periodic
from efa_addons.portable import SUFFIX, read_portable
from efa_addons.studies.common import MAX_SEED, require
from efa_addons.studies.hosts import NAMES as HOSTS
from efa_addons.studies.hosts import PACKAGES
from efa_addons.version import __version__

DEFAULT_MAX_LENGTH = 20.0  # Å
_OPTIONS = {field.name for field in dataclasses.fields(EFAConfig)}
Verbs = Any  # the object argparse.add_subparsers returns


class _Parser(argparse.ArgumentParser):
    """Of the command and of its verbs: the beginning of an option is no option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)


def main(argv: list[str] | None = None) -> int:
    """Runs a verb; errors of the user are one line on stderr and exit code 2; 1: a study of which some runs failed."""
    parser = _Parser(prog="efa-addons", description=__doc__)
    parser.add_argument("--version", action="version", version=f"efa_addons {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True)
    _add_insert(verbs)
    _add_strip(verbs)
    _add_convert(verbs)
    _add_inspect(verbs)
    _add_kernels(verbs)
    _add_demo(verbs)
    _add_study(verbs)
    _add_report(verbs)
    _add_doctor(verbs)
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in verbs.choices:
            known = [name for name in verbs.choices[argv[0]]._option_string_actions if name.startswith("--")]
            refuse_unknown_flags("option", argv, known)
        args = parser.parse_args(argv)
        return args.run(args) or 0
    except (EFAError, ImportError, OSError) as error:
        print(f"efa-addons {argv[0]}: {error}", file=sys.stderr)
        return 2


def _add_insert(verbs: Verbs) -> None:
    parser = verbs.add_parser("insert", help="put zero-initialised EFA blocks into a trained model")
    _add_files(parser, "a trained model without EFA")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of the inner weights (default: 0)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file with EFA options, flat or under 'efa:'")
    parser.add_argument("--data", type=Path, metavar="FILE", help="structures (any format of ASE) to take 'auto' options from")
    group = parser.add_argument_group("EFA options", "values as in YAML: null, true, [0, 1], 1e-5")
    for field in dataclasses.fields(EFAConfig):
        group.add_argument(
            f"--{field.name}", default=argparse.SUPPRESS, metavar="VALUE", type=_value, help=field.metadata["help"]
        )
    parser.set_defaults(run=_insert)


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"must be an integer, 0 to {MAX_SEED}, got {text}")
    return int(text)


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"must be a value as in YAML, got {text} (in a shell lists need quotes)") from error


def _add_strip(verbs: Verbs) -> None:
    parser = verbs.add_parser("strip", help="take the EFA blocks out of a model again")
    _add_files(parser, "a model with EFA")
    parser.set_defaults(run=_strip)


def _add_convert(verbs: Verbs) -> None:
    parser = verbs.add_parser("convert", help="between a host's own file and the portable one, which ends in .efa")
    _add_files(parser, "a model")
    parser.set_defaults(run=_convert)


def _add_inspect(verbs: Verbs) -> None:
    parser = verbs.add_parser("inspect", help="say what a model contains, and how much EFA contributes")
    _add_host(parser)
    parser.add_argument("input", metavar="FILE", type=Path, help="a model, in the host's format or the portable one")
    parser.add_argument("--data", type=Path, metavar="FILE", help="structures (any format of ASE) to measure EFA's outputs on")
    parser.set_defaults(run=_inspect)


def _add_kernels(verbs: Verbs) -> None:
    parser = verbs.add_parser("kernels", help="plot what a trained block attends to: its attention weights against distance")
    _add_host(parser)
    parser.add_argument("input", metavar="FILE", type=Path, help="a model with EFA, in the host's format or the portable one")
    parser.add_argument("--data", type=Path, metavar="FILE", required=True, help="structures (any format of ASE) to look at")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("kernels.png"),
        metavar="FILE",
        help="the picture (default: kernels.png); the numbers go beside it, to a file that ends in .csv; none is overwritten",
    )
    parser.set_defaults(run=_kernels)


def _add_host(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", choices=HOSTS, default=HOSTS[0], help=f"architecture of the model (default: {HOSTS[0]})")


def _add_files(parser: argparse.ArgumentParser, what: str) -> None:
    _add_host(parser)
    parser.add_argument("input", metavar="IN", type=Path, help=what)
    parser.add_argument(
        "output", metavar="OUT", type=Path, help="file to write (.efa: portable format); an existing one is not overwritten"
    )


def _add_demo(verbs: Verbs) -> None:
    parser = verbs.add_parser("demo", help="the cumulene torsion: a host with and without EFA, from data to plot")
    parser.add_argument("--host", choices=HOSTS, default=HOSTS[0], help="what to train (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), metavar="DIR", help="folder (default: demo-out)")
    parser.add_argument("--quick", action="store_true", help="a minute's version of every step; its figures mean nothing")
    parser.add_argument("--seed", type=_seed, default=0, help="seed of data and training (default: 0)")
    parser.set_defaults(run=_demo)


def _add_study(verbs: Verbs) -> None:
    parser = verbs.add_parser("study", help="hosts with and without EFA compared on the data of a study: all its trainings")
    parser.add_argument("study", metavar="FILE", type=Path, help="of configs/studies, or one like them")
    parser.add_argument(
        "--size", default="quick", help="quick (the default), paper (for a GPU), or tiny (that every step runs)"
    )
    parser.add_argument("--out", type=Path, default=Path("studies-out"), metavar="DIR", help="folder (default: studies-out)")
    parser.add_argument("--hosts", nargs="+", choices=HOSTS, help="some of the study's (default: all)")
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        type=_host_python,
        metavar="HOST=PATH",
        help="the interpreter of an environment with a host (default: this one, or tox's, which is made if need be)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what trains (default: %(default)s)")
    parser.add_argument("--parallel", type=int, help="trainings at a time (default: the number of cores; on a GPU one)")
    parser.set_defaults(run=_study)


def _host_python(text: str) -> tuple[str, Path]:
    host, _, path = text.partition("=")
    if host not in HOSTS or not path:
        raise argparse.ArgumentTypeError(f"must be HOST=PATH with a host of {', '.join(HOSTS)}, got {text}")
    return host, Path(path).absolute()  # not resolved: that would leave a virtual environment


def _add_report(verbs: Verbs) -> None:
    parser = verbs.add_parser("report", help="tables, pictures and a page from the runs of studies")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with runs; the report is written into it")
    parser.set_defaults(run=_report)


def _add_doctor(verbs: Verbs) -> None:
    parser = verbs.add_parser(
        "doctor", help="say what is installed here, and which back end a call on a CPU or GPU takes, and why"
    )
    parser.set_defaults(run=_doctor)


def _insert(args: argparse.Namespace) -> None:
    host = _host(args)
    options = {} if args.config is None else _options_in(args.config, getattr(host, "TRAINING_OPTIONS", ()))
    options.update({name: value for name, value in vars(args).items() if name in _OPTIONS})
    config = EFAConfig.from_dict(options)
    if config.needs_data:
        config = _resolve(config, args.data, wants=[name for name, value in options.items() if value == AUTO])
    elif args.data is not None:
        if not args.data.exists():
            raise FileNotFoundError(f"{args.data} does not exist.")
        print(f"{args.data}: not used, since no option is '{AUTO}'")
    model = host.insert_efa(_load(host, args), config, seed=args.seed)
    host.save(model, args.output)
    print(host.describe(model))


def _options_in(path: Path, of_training: Collection[str]) -> dict[str, Any]:
    """EFA options of a YAML file, flat or under 'efa:', without those `of_training`, which say nothing of a model."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        raise EFAError(f"{path} is no YAML file ({' '.join(str(error).split())}).") from error
    if isinstance(content, dict) and "efa" in content:
        content = {} if content["efa"] is True or content["efa"] is None else content["efa"]
    elif isinstance(content, dict) and content and not any(name in content for name in (*_OPTIONS, *of_training)):
        raise EFAError(f"{path} has no section 'efa:', and no option of EFA at its top.")
    if not isinstance(content, dict):
        raise EFAError(f"{path} must hold a mapping of EFA options, flat or under 'efa:', or 'efa: true', got {content!r}.")
    unused = [name for name in content if name in of_training]
    if unused:
        print(f"{path}: options of training, not used here: {', '.join(unused)}")
    return {name: value for name, value in content.items() if name not in unused}


def _resolve(config: EFAConfig, data: Path | None, wants: Collection[str]) -> EFAConfig:
    """'auto' from a file of structures, which those `wants` ask for; a max_length that was not given has a default, too."""
    if data is not None:
        structures = _structures(data)
        sizes = [len(atoms) for atoms in structures]
        batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        largest = largest_distance(torch.cat([torch.as_tensor(atoms.positions) for atoms in structures]), batch)
        return config.resolve(largest, sum(sizes) / len(sizes))
    if wants:
        raise EFAError(f"{' and '.join(wants)}: auto is computed from structures: give --data FILE, or a number.")
    print(
        f"max_length: {DEFAULT_MAX_LENGTH} Å, since none was given; better is the largest distance you will compute "
        "(--max_length), or a file to take it from (--data)."
    )
    return config.replace(max_length=DEFAULT_MAX_LENGTH)


def _structures(path: Path) -> list[Any]:
    """All structures of a file, through ASE, which every host brings along.

    Raises:
        EFAError: ASE cannot read the file, or there are no structures in it, or some without atoms or periodic ones.
    """
    ase_io = require("ase.io", "data")
    expected = "expected one or more structures in a format that ASE reads, extended XYZ for example."
    try:
        structures = list(ase_io.iread(path, index=":", do_not_split_by_at_sign=True))
    except FileNotFoundError:
        raise
    except Exception as error:  # every format has errors of its own
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise EFAError(f"{path} cannot be read ({why}): {expected}") from error
    empty = sum(len(atoms) == 0 for atoms in structures)
    if empty or not structures:
        found = f"{empty} of {len(structures)} structures without atoms" if empty else "no structures"
        raise EFAError(f"{path} has {found}: {expected}")
    for number, atoms in enumerate(structures, start=1):
        refuse_periodic(torch.as_tensor(atoms.pbc), f"structure {number} of {path}")
    return structures


def _strip(args: argparse.Namespace) -> None:
    host = _host(args)
    host.save(host.strip_efa(_load(host, args)), args.output)
    print(f"{args.output}: stock model without EFA")


def _convert(args: argparse.Namespace) -> None:
    host = _host(args)
    host.save(_load(host, args), args.output)
    print(f"{args.output}: {'portable format' if args.output.suffix == SUFFIX else 'the format of ' + args.host}")


def _inspect(args: argparse.Namespace) -> None:
    host = _host(args)
    structures = None if args.data is None else _structures(args.data)
    portable = read_portable(args.input, args.host)
    if portable is not None:
        print(
            f"portable format {portable.format}, written by efa_addons {portable.efa_addons_version} and {args.host} "
            f"{portable.host_version}"
        )
    print(host.inspect(_load(host, args), structures))


def _kernels(args: argparse.Namespace) -> None:
    from efa_addons.studies import kernels

    kernels.check_name(args.out)
    for path in (args.out, args.out.with_suffix(".csv")):
        if path.exists():
            raise FileExistsError(f"{path} exists already; give another name with --out.")
    host = _host(args)
    structures = _structures(args.data)
    layers = kernels.effective_kernels(host, _load(host, args), structures)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    kernels.plot(args.out, layers)
    kernels.write_csv(args.out.with_suffix(".csv"), layers)
    print("\n".join([kernels.describe(layer) for layer in layers] + [f"{args.out}, {args.out.with_suffix('.csv')}"]))


def _host(args: argparse.Namespace) -> ModuleType:
    """The adapter module, once it is clear that the files are as they should be."""
    if not args.input.exists():
        raise FileNotFoundError(f"{args.input} does not exist.")
    if getattr(args, "output", None) is not None:
        if args.output.exists():
            raise FileExistsError(f"{args.output} exists already; give another name.")
        if not args.output.parent.is_dir():
            raise FileNotFoundError(f"{args.output.parent} is no folder: make it before {args.output.name} is written there.")
    try:
        host = importlib.import_module(f"efa_addons.hosts.{args.host}")
    except ImportError as error:
        others = [name for name in HOSTS if name != args.host and importlib.util.find_spec(PACKAGES[name])]
        here = f", or say --host {' or '.join(others)}, which is here" if others else ""
        raise ImportError(f"{error}; install the host with: {how_to_install(args.host)}{here}") from error
    return host


def _load(host: ModuleType, args: argparse.Namespace) -> Any:
    """The model of the input file.

    Raises:
        EFAError: it cannot be read.
    """
    try:
        return host.load(args.input)
    except (EFAError, ImportError):
        raise
    except Exception as error:  # torch has many for files that are damaged or of another kind
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise EFAError(f"{args.input} cannot be read ({why}): expected a model of {args.host}, whole.") from error


def _demo(args: argparse.Namespace) -> None:
    from efa_addons.studies import demo

    demo.run(args.out, args.host, quick=args.quick, seed=args.seed)


def _study(args: argparse.Namespace) -> int:
    from efa_addons.studies import cumulene, runner, study_report
    from efa_addons.studies.study import Study

    cumulene.require("matplotlib", "data")  # of the report: not to be missed after all trainings
    study = Study.load(args.study, args.size)
    options = {"pythons": dict(args.python), "hosts": args.hosts, "device": args.device, "parallel": args.parallel}
    folder, records = runner.run(study, args.out, **options)
    study_report.write(folder)
    if not any(record.finished for record in records):
        raise EFAError(f"every run failed; the report in {folder} says why.")
    return int(not all(record.finished for record in records))


def _report(args: argparse.Namespace) -> None:
    from efa_addons.studies import study_report

    study_report.write(args.folder)


def _doctor(args: argparse.Namespace) -> None:
    from efa_addons import doctor

    print(doctor.report())


if __name__ == "__main__":
    sys.exit(main())
