"""What MACE's training script must know about EFA, as wrappers around a few of its functions.

Each wrapper calls the original; without EFA in the arguments or the model the result is the original's, bit for bit. They
are put where MACE looks the functions up, so that the stock `mace_run_train` serves a model with EFA, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import glob
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import torch
from ase.symbols import Symbols
from mace.calculators.lammps_mace import LAMMPS_MACE
from mace.calculators.lammps_mliap_mace import LAMMPS_MLIAP_MACE
from mace.cli import (
    convert_cueq_e3nn,
    convert_e3nn_cueq,
    convert_e3nn_hybrid,
    convert_e3nn_oeq,
    convert_oeq_e3nn,
    create_lammps_model,
    visualise_train,
)
from mace.modules import lora
from mace.tools import model_script_utils, scripts_utils
from mace.tools.checkpoint import CheckpointBuilder
from mace.tools.multihead_tools import HeadConfig
from mace.tools.utils import get_tag

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts import base
from efa_addons.hosts.derive import derive
from efa_addons.hosts.mace.describe import describe
from efa_addons.hosts.mace.insert import efa_config, efa_layers, efa_parameters, graft_from, has_efa, insert_efa, strip_efa
from efa_addons.hosts.mace.model import LAMMPS_FORWARD, SUPPORTED
from efa_addons.hosts.mace.options import TrainingOptions
from efa_addons.nn.checks import largest_distance, refuse_periodic


def _configure_model(original: Callable) -> Callable:
    """Builds the stock model, then inserts new EFA blocks or carries over those of the foundation model."""

    @functools.wraps(original)
    def configure_model(args, train_loader, atomic_energies, model_foundation=None, *rest, **options):
        wanted: EFAConfig | None = getattr(args, "efa_config", None)
        given = getattr(args, "efa_given", {})
        carried = model_foundation is not None and has_efa(model_foundation)
        if carried and given is None:
            raise EFAError(
                "the foundation model has EFA, which false for efa does not take out: `efa-addons strip` gives one without it."
            )
        if carried or wanted is not None:
            _refuse_periodic_structures([*rest, *options.values()])
        stock_foundation = strip_efa(model_foundation) if carried else model_foundation
        model, output_args = original(args, train_loader, atomic_energies, stock_foundation, *rest, **options)
        if carried:
            base.refuse_other_settings(given, efa_config(model_foundation))
            model = graft_from(model, model_foundation)
        elif wanted is not None:
            model = insert_efa(model, resolve_from(wanted, train_loader.dataset), seed=args.seed)
        _refuse_other_checkpoints(args, model)
        if has_efa(model):
            args.efa_config = efa_config(model)  # resolved, for what is logged of the run
            logging.info(describe(model, _usual_num_atoms(train_loader.dataset), args.batch_size, args.device))
            if _training(args).freeze_base and getattr(args, "lora", False):
                raise EFAError("freeze_base trains EFA alone, and --lora more than that: leave one of the two out.")
        return model, output_args

    return configure_model


def _get_params_options(original: Callable) -> Callable:
    """Gives EFA a parameter group of its own: learning-rate factor, weight decay, and no part in `--freeze`."""

    @functools.wraps(original)
    def get_params_options(args, model):
        param_options = original(args, model)
        if not has_efa(model):
            return param_options
        training = _training(args)
        new = list(efa_parameters(model).values())
        ids = {id(p) for p in new}
        for group in param_options["params"]:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        for parameter in new:
            parameter.requires_grad_(True)
        # here, as conversions (cuEquivariance) come between building the model and this
        if training.freeze_base:  # without, what LoRA and --freeze have frozen stays so
            base.freeze_base(model, efa_layers(model), True)
        decay = args.weight_decay if training.weight_decay is None else training.weight_decay
        if getattr(args, "lbfgs", False) and (training.lr_factor != 1 or training.weight_decay is not None):
            logging.warning("LBFGS knows one learning rate and no weight decay: EFA's lr_factor and weight_decay are not used.")
        param_options["params"].append(
            {"name": "efa", "params": new, "weight_decay": decay, "lr": training.lr_factor * args.lr}
        )
        return param_options

    return get_params_options


def _model_inference(original: Callable) -> Callable:
    """What is frozen stays so: for a plot in training MACE freezes all parameters, and then trains all of them."""

    @functools.wraps(original)
    def model_inference(all_data_loaders, model, *rest, **options):
        trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        results = original(all_data_loaders, model, *rest, **options)
        if has_efa(getattr(model, "module", model)) and any(of_training for _, of_training in trained):
            for parameter, of_training in trained:
                parameter.requires_grad_(of_training)
        return results

    return model_inference


def _get_swa(original: Callable) -> Callable:
    """Keeps EFA's learning-rate factor in stage two: MACE sets all groups to the one `--swa_lr`."""

    @functools.wraps(original)
    def get_swa(args, model, optimizer, *rest, **options):
        swa, swas = original(args, model, optimizer, *rest, **options)
        for group in optimizer.param_groups:
            if group["name"] == "efa":
                group["swa_lr"] *= _training(args).lr_factor
        return swa, swas

    return get_swa


def _setup_wandb(original: Callable) -> Callable:
    """Logs EFA's settings as `efa`; MACE writes the arguments as JSON, which knows no EFAConfig."""

    @functools.wraps(original)
    def setup_wandb(args):
        plain = argparse.Namespace(**vars(args))
        config, training, _ = (plain.__dict__.pop(f"efa_{name}", None) for name in ("config", "training", "given"))
        if config is not None:
            plain.efa = {**config.to_dict(), **dataclasses.asdict(training or TrainingOptions())}
            plain.wandb_log_hypers = [*plain.wandb_log_hypers, "efa"]
        original(plain)

    return setup_wandb


def _rebuild(original: Callable) -> Callable:
    """For functions that build another model from a model's hyper-parameters and weights: they see the stock part only."""

    @functools.wraps(original)
    def rebuild(model, *rest, **options):
        if not has_efa(model):
            return original(model, *rest, **options)
        return graft_from(original(strip_efa(model), *rest, **options), model)

    return rebuild


def _convert(original: Callable) -> Callable:
    """The ways to and from cuEquivariance and OpenEquivariance; EFA takes on the layout of features of the new model."""
    rebuild = _rebuild(original)
    default_name = inspect.signature(original).parameters["output_model"].default

    @functools.wraps(original)
    def run(input_model, output_model=default_name, device="cpu", return_model=True, **options):
        source = (
            torch.load(input_model, map_location=device, weights_only=False) if isinstance(input_model, str) else input_model
        )
        if not has_efa(source):
            return original(input_model, output_model, device, return_model, **options)
        converted = rebuild(source, device=device, **options)
        if return_model:
            return converted
        path = output_model if source is input_model else f"{Path(input_model).with_suffix('')}.{output_model}"  # as MACE does
        logging.warning(f"Saving converted model to {path}")
        return torch.save(converted, path)

    return run


def _inject_loras(original: Callable) -> Callable:
    """LoRA for the stock part; EFA, which is new, trains in full."""

    @functools.wraps(original)
    def inject_LoRAs(model, *rest, **options):
        blocks = {product: product.efa for product in model.products if hasattr(product, "efa")}
        for product in blocks:
            del product.efa
        model = original(model, *rest, **options)
        for product, block in blocks.items():
            product.efa = block.requires_grad_(True)
        return model

    return inject_LoRAs


def _create_checkpoint(original: Callable) -> Callable:
    """Keeps EFA's settings in the checkpoint, so that a restart with others can be refused."""

    @functools.wraps(original)
    def create_checkpoint(state):
        checkpoint = original(state)
        if has_efa(state.model):
            checkpoint["efa_config"] = state.model.efa_config
        return checkpoint

    return create_checkpoint


def _refuse_mliap(original: Callable) -> Callable:
    """ML-IAP passes distances between neighbours and no positions."""

    @functools.wraps(original)
    def refuse(*args, **options):
        if any(isinstance(value, torch.nn.Module) and has_efa(value) for value in (*args, *options.values())):
            raise EFAError(
                "EFA needs positions, and LAMMPS' ML-IAP interface passes distances between neighbours only: export with "
                "--format libtorch and run 'pair_style mace no_domain_decomposition' on one rank."
            )
        return original(*args, **options)

    return refuse


_CONVERTERS = (convert_e3nn_cueq, convert_cueq_e3nn, convert_e3nn_oeq, convert_oeq_e3nn, convert_e3nn_hybrid)
_FUNCTIONS = (
    (model_script_utils.configure_model, _configure_model),
    (scripts_utils.get_params_options, _get_params_options),
    (visualise_train.model_inference, _model_inference),
    (scripts_utils.get_swa, _get_swa),
    (scripts_utils.setup_wandb, _setup_wandb),
    (scripts_utils.remove_pt_head, _rebuild),
    (scripts_utils.extract_model, _rebuild),
    (lora.inject_LoRAs, _inject_loras),
    *((module.run, _convert) for module in _CONVERTERS),
)
_METHODS = (
    (CheckpointBuilder, "create_checkpoint", lambda original: staticmethod(_create_checkpoint(original))),
    (LAMMPS_MACE, "forward", lambda original: derive(original, LAMMPS_FORWARD, SUPPORTED)),
    (LAMMPS_MLIAP_MACE, "__init__", _refuse_mliap),
    (create_lammps_model, "run_e3nn_to_cueq", _refuse_mliap),  # with --format mliap, before the class above is reached
)


@functools.cache
def install() -> None:
    """Puts the wrappers into every MACE module that holds the originals, also into a script that runs as __main__."""
    for original, wrap in _FUNCTIONS:
        wrapped = wrap(original)
        for module in list(sys.modules.values()):
            if getattr(module, "__name__", "").partition(".")[0] in ("mace", "__main__"):
                for name in [name for name, value in vars(module).items() if value is original]:
                    setattr(module, name, wrapped)
    for owner, name, wrap in _METHODS:
        setattr(owner, name, wrap(getattr(owner, name)))


def _refuse_periodic_structures(arguments: Sequence[Any]) -> None:
    """Of all sets that MACE has in memory, and of those of the final test, before it trains."""
    for head in (each for value in arguments if isinstance(value, list) for each in value if isinstance(each, HeadConfig)):
        if head.test_dir is not None:
            _refuse_periodic_hdf5(Path(head.test_dir))
        if head.collections is None:
            continue
        sets = (("training set", head.collections.train), ("validation set", head.collections.valid))
        for name, structures in (*sets, *((f"test set {name}", structures) for name, structures in head.collections.tests)):
            for i, structure in enumerate(structures):
                if structure.pbc is not None and any(structure.pbc):
                    formula = Symbols(structure.atomic_numbers).get_chemical_formula()
                    where = f"structure {i + 1}, {formula}, of the {name} ({head.head_name}) in MACE's order"
                    refuse_periodic(torch.tensor(structure.pbc), where)


def _refuse_periodic_hdf5(folder: Path) -> None:
    """Of what `mace_prepare_data` wrote, as MACE numbers it."""
    for path in sorted(folder.rglob("*.h5")):
        with h5py.File(path) as file:
            for batch, structures in file.items():
                for name, structure in structures.items():
                    pbc = structure["pbc"][()]
                    if not isinstance(pbc, bytes) and any(pbc):  # b"None" where it was not known
                        refuse_periodic(torch.tensor(pbc), f"{batch}/{name} of {path}")


def resolve_from(config: EFAConfig, dataset: Any) -> EFAConfig:
    """Replaces 'auto' settings by numbers from a MACE data set (a sequence of AtomicData)."""
    if not config.needs_data:
        return config
    largest, atoms = 0.0, 0
    for i in range(len(dataset)):
        structure = dataset[i]  # which may be read from a disk
        refuse_periodic(getattr(structure, "pbc", None), f"structure {i + 1} of the training set in MACE's order")
        positions = structure.positions
        atoms += positions.shape[0]
        one_graph = torch.zeros(positions.shape[0], dtype=torch.long)
        largest = max(largest, largest_distance(positions, one_graph))
    return config.resolve(largest, atoms / max(len(dataset), 1))


def _usual_num_atoms(dataset: Any, sample: int = 256) -> int:
    """Mean number of atoms of some structures spread over a data set, which may be long and on a disk."""
    chosen = range(0, len(dataset), max(1, len(dataset) // sample))
    return round(sum(dataset[i].positions.shape[0] for i in chosen) / len(chosen))


def _refuse_other_checkpoints(args: Any, model: torch.nn.Module) -> None:
    """MACE loads checkpoints leniently: with other EFA settings a restart would quietly begin with untrained blocks.

    After the last epoch of any run it loads the one of the highest epoch under the run's name, be it an earlier run's: a model
    with that one's weights under these settings, or an error after all epochs.
    """
    tag, now = get_tag(name=args.name, seed=args.seed), getattr(model, "efa_config", {})
    for path in Path(args.checkpoints_dir).glob(f"{glob.escape(tag)}_epoch-*.pt"):
        try:
            saved = torch.load(path, map_location="cpu", weights_only=False, mmap=True).get("efa_config") or {}
        except Exception as error:  # what a run that was killed has left; MACE goes without it, or says what is wrong
            logging.warning(f"{path} cannot be read, nor whether its EFA is that of this run ({type(error).__name__}: {error})")
            continue
        if changed := base.other_settings(now, saved):
            others = f"with EFA of other settings: {changed}"
            if any(now.get(name) != saved.get(name) for name in ("max_length", "normalization")):
                others += " ('auto' follows the training set: after it has changed, give the checkpoint's numbers)"
            what = others if now and saved else "with EFA, and this run has none" if saved else "without EFA"
            raise EFAError(
                f"{path} was written {what}. MACE takes up what was written under the same name, at the end of a run if not "
                "before: give the same EFA options, or another --name to start anew."
            )


def _training(args: Any) -> TrainingOptions:
    return getattr(args, "efa_training", None) or TrainingOptions()
