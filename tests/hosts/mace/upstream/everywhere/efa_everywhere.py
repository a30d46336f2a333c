"""EFA in every ScaleShiftMACE that MACE's own tests construct or train, in all their processes.

EFA_UPSTREAM says how: `zero`, blocks that add zero and stay so in training, or `random`, blocks of random weights that are
trained. What MACE constructs by itself (converters, head selection, fine-tuning) is left to MACE and to efa_addons.hosts.mace.

Periodic structures are let through, for nearly all of MACE's tests are periodic: the blocks then see the atoms of one cell,
which says nothing physical, but runs every line. That a test had EFA is noted in the file EFA_UPSTREAM_NOTES.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Dict, Optional

import torch
from mace import modules as mace_modules
from mace.modules.models import ScaleShiftMACE
from mace.tools import model_script_utils
from torch import Tensor, nn

from efa_addons import EFAConfig
from efa_addons.hosts.mace import has_efa, insert_efa
from efa_addons.hosts.mace import model as efa_model
from efa_addons.hosts.mace.insert import efa_parameters

# Small and fine enough a grid for the tolerances of MACE's tests of invariance; they have no larger structures.
CONFIG = EFAConfig(max_length=20.0, tolerance=1e-9, num_features_qk=4, num_features_v=4, mlp_features=8)
RANDOM_SIZE = 0.1
FORM = os.environ["EFA_UPSTREAM"]


def note(what: str) -> None:
    """Appends a word to the notes of the test that runs."""
    with Path(os.environ["EFA_UPSTREAM_NOTES"]).open("a") as notes:
        notes.write(what + "\n")


refuse = efa_model.refuse_what_efa_cannot_serve


def look(data: Dict[str, Tensor], per_edge: bool) -> None:
    """In place of `refuse_what_efa_cannot_serve`: lets periodic structures through."""
    if not torch.jit.is_scripting():  # noqa: SIM102 - TorchScript knows this condition by itself only
        if not torch.compiler.is_compiling():
            note("efa")
    if per_edge:
        refuse(data, per_edge)


def as_it_is(x: Tensor, pbc: Optional[Tensor]) -> Tensor:
    """In place of `nan_if_periodic`, for what is compiled."""
    return x


def prepare(model: nn.Module) -> None:
    """New blocks as the form wants them."""
    generator = torch.Generator().manual_seed(0)
    for parameter in efa_parameters(model).values():
        if FORM == "random":
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data.copy_(RANDOM_SIZE * values)
        else:
            parameter.register_hook(torch.zeros_like)


def constructed(init):
    """ScaleShiftMACE.__init__ that ends with EFA blocks where a test calls it."""

    @functools.wraps(init)
    def __init__(self, *args, **options):
        init(self, *args, **options)
        caller = Path(sys._getframe(1).f_code.co_filename)
        if type(self) is ScaleShiftMACE and caller.name.startswith("test_"):
            insert(self)

    return __init__


def insert(model: ScaleShiftMACE) -> None:
    note("efa")
    prepare(insert_efa(model, CONFIG, seed=0, inplace=True))


def mace(**options) -> nn.Module:
    """mace.modules.MACE for tests: a ScaleShiftMACE that scales by one and shifts by zero is the same function."""
    model = ScaleShiftMACE(atomic_inter_scale=1.0, atomic_inter_shift=0.0, **options)
    insert(model)
    return model


def converted(init):
    """MACEEFA.__init__ for the form `zero`: what MACE's converters make of a model stays zero in training, too."""

    @functools.wraps(init)
    def __init__(self, *args, **options):
        init(self, *args, **options)
        for parameter in self.parameters():
            parameter.register_hook(torch.zeros_like)

    return __init__


def trained(configure_model):
    """configure_model with what `efa-mace-train --efa` would tell it."""

    @functools.wraps(configure_model)
    def with_efa(args, *rest, **options):
        if args.model in ("MACE", "ScaleShiftMACE"):
            args.efa_config = CONFIG
        carried = any(isinstance(given, nn.Module) and has_efa(given) for given in (*rest, *options.values()))
        model, output_args = configure_model(args, *rest, **options)
        if has_efa(model):
            note("efa")
            if not (carried and FORM == "random"):
                prepare(model)
        return model, output_args

    return with_efa


def activate() -> None:
    efa_model.refuse_what_efa_cannot_serve, efa_model.nan_if_periodic = look, as_it_is
    if FORM == "zero":
        efa_model.MACEEFA.__init__ = converted(efa_model.MACEEFA.__init__)
    ScaleShiftMACE.__init__ = constructed(ScaleShiftMACE.__init__)
    mace_modules.MACE = mace
    configure_model = model_script_utils.configure_model
    for module in list(sys.modules.values()):
        if getattr(module, "configure_model", None) is configure_model:
            module.configure_model = trained(configure_model)
