"""`efa-mace-train`: MACE's own training with the EFA options beside MACE's."""

from __future__ import annotations

import logging
import sys

from mace import tools
from mace.cli import run_train

from efa_addons.hosts.mace import install
from efa_addons.hosts.mace.options import add_flags, options_from, take_section


def main(argv: list[str] | None = None) -> None:
    """Trains as `mace_run_train` does. Without EFA options the run is that of stock MACE, bit for bit."""
    argv, section = take_section(sys.argv[1:] if argv is None else argv)
    parser = tools.build_default_arg_parser()
    add_flags(parser)
    args = parser.parse_args(argv)
    config, training = options_from(args, section)
    install()
    for name in [name for name in vars(args) if name == "efa" or name.startswith("efa_")]:
        delattr(args, name)
    args.efa_config, args.efa_training = config, training
    run_train.run(args)


if __name__ == "__main__":
    logging.captureWarnings(True)
    main()
