"""`efa-mace-train`: MACE's own training with the EFA options beside MACE's."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from mace import tools
from mace.cli import run_train

from efa_addons.errors import EFAError
from efa_addons.hosts.mace import has_efa, install, load, save
from efa_addons.hosts.mace.options import add_flags, options_from, refuse_unknown, take_section
from efa_addons.portable import SUFFIX


def main(argv: list[str] | None = None) -> None:
    """Trains as `mace_run_train` does. Without EFA options the run is that of stock MACE, bit for bit."""
    parser = tools.build_default_arg_parser()
    add_flags(parser)
    try:
        with tempfile.TemporaryDirectory(prefix="efa_addons_") as folder:
            argv, section = take_section(sys.argv[1:] if argv is None else argv, Path(folder))
            refuse_unknown(argv)
            args = parser.parse_args(argv)
        config, training, given = options_from(args, section)
        _refuse_portable(args)
    except EFAError as error:
        sys.exit(f"efa-mace-train: {error}")
    install()
    for name in [name for name in vars(args) if name == "efa" or name.startswith("efa_")]:
        delattr(args, name)
    args.efa_config, args.efa_training, args.efa_given = config, training, given
    run_train.run(args)
    _write_portable(args)


def _refuse_portable(args: argparse.Namespace) -> None:
    if str(args.foundation_model).endswith(SUFFIX):
        model = Path(args.foundation_model).with_suffix(".model")
        raise EFAError(
            f"--foundation_model {args.foundation_model} is in the portable format, and MACE reads .model files: "
            f"efa-addons convert {args.foundation_model} {model}, and give that."
        )


def _write_portable(args: argparse.Namespace) -> None:
    """Beside each `.model` with EFA a `.efa`, which other versions can read; a run is not lost where that fails."""
    if args.distributed and os.environ.get("RANK", "0") != "0":
        return
    for stage in ("", "_stagetwo"):
        path = Path(args.model_dir) / f"{args.name}{stage}.model"
        if not path.exists():
            continue
        model, portable = load(path), path.with_suffix(SUFFIX)
        if has_efa(model):
            try:
                save(model, portable)
            except Exception as error:  # of what MACE builds from its own description, too
                logging.warning(f"{path} was not written in the portable format: {error}")
        elif portable.exists():
            logging.warning(f"{path} has no EFA: {portable} beside it is of an earlier run.")


if __name__ == "__main__":
    logging.captureWarnings(True)
    main()
