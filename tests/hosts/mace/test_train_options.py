"""MACE's training options with EFA: averaging, stage two, optimizers, losses, heads, data formats, processes, logging."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import ase.io
import h5py
import numpy as np
import pytest
import torch
from mace import modules, tools
from mace_support import FLAGS, SMALL, batch_of, evaluate, randomize, records, split

from efa_addons import EFAConfig, EFAError
from efa_addons.hosts.mace import efa_config, has_efa, insert_efa, load, strip_efa
from efa_addons.hosts.mace.insert import efa_parameters


def groups(checkpoint) -> dict[str, dict]:
    return {group["name"]: group for group in torch.load(checkpoint, weights_only=False)["optimizer"]["param_groups"]}


def two_stages(trained):
    return trained(
        "two_stages", "--efa", *SMALL, "--efa_lr_factor", "0.5", "--swa", "--start_swa", "1", "--swa_lr", "0.004",
        "--max_num_epochs", "2", "--ema", "--amsgrad", "--scheduler", "ExponentialLR",
    )  # fmt: skip


def test_ema_averages_the_weights_of_efa(trained, stock_model):
    """One step from w0 to w1: the saved weights are d w0 + (1 - d) w1, with torch_ema's d = 2/11 after one update."""
    one_step = ("--efa", *SMALL, "--batch_size", "9")
    last = load(trained("one_step", *one_step) / "one_step.model")
    averaged = load(trained("averaged", *one_step, "--ema", "--ema_decay", "0.5") / "averaged.model")
    first, after = efa_parameters(insert_efa(stock_model, efa_config(last), seed=3)), efa_parameters(last)
    for name, mean in efa_parameters(averaged).items():
        assert torch.allclose(mean, (2 * first[name] + 9 * after[name]) / 11, rtol=0, atol=1e-14), name
    assert not torch.equal(averaged.readouts[0].linear.weight, last.readouts[0].linear.weight)


def test_stage_two_trains_saves_and_compiles_efa(trained, ethanol):
    folder = two_stages(trained)
    first, second = load(folder / "two_stages.model"), load(folder / "two_stages_stagetwo.model")
    assert has_efa(first) and has_efa(second)
    stage_one = efa_parameters(first)
    assert all(not torch.equal(p, stage_one[name]) for name, p in efa_parameters(second).items())
    compiled = torch.jit.load(folder / "two_stages_stagetwo_compiled.model")
    assert compiled(batch_of(second, ethanol))["energy"].item() == pytest.approx(
        evaluate(second, ethanol)["energy"].item(), abs=1e-10
    )


def test_stage_two_keeps_the_learning_rate_factor(trained):
    (checkpoint,) = two_stages(trained).glob("checkpoints/*_epoch-1_swa.pt")
    rates = {name: group["swa_lr"] for name, group in groups(checkpoint).items()}
    assert rates.pop("efa") == pytest.approx(0.002)
    assert set(rates.values()) == {0.004}


def test_restart_in_stage_two_goes_on_where_it_stopped(trained):
    """With EMA the checkpoint holds the averaged weights: the error before the first new step is the last one."""
    folder = two_stages(trained)
    before = [record for record in records(folder) if record["mode"] == "eval"][-1]
    trained(
        "two_stages_on", "--efa", *SMALL, "--efa_lr_factor", "0.5", "--swa", "--start_swa", "1", "--swa_lr", "0.004",
        "--max_num_epochs", "3", "--ema", "--amsgrad", "--scheduler", "ExponentialLR",
        "--work_dir", str(folder), "--name", "two_stages", "--restart_latest",
    )  # fmt: skip
    evaluations = [record for record in records(folder) if record["mode"] == "eval"]
    after = evaluations[evaluations.index(before) + 1]
    assert after["rmse_f"] == pytest.approx(before["rmse_f"], abs=1e-12)
    assert after["rmse_e"] == pytest.approx(before["rmse_e"], abs=1e-12)
    assert evaluations[-1]["epoch"] == 2
    (checkpoint,) = folder.glob("checkpoints/*_epoch-2_swa.pt")
    assert groups(checkpoint)["efa"]["lr"] == pytest.approx(0.002)


def last_maps(model) -> list[torch.Tensor]:
    """Those that start from zero."""
    return [p for name, p in efa_parameters(model).items() if name.endswith(("mlp.2.weight", "out.weight"))]


def test_lbfgs_trains_efa(trained):
    model = load(trained("lbfgs", "--efa", *SMALL, "--lbfgs", "--batch_size", "9") / "lbfgs.model")
    assert len(last_maps(model)) == 4 and all(p.abs().max() > 1e-6 for p in last_maps(model))


def test_wandb_gets_the_settings_of_efa(trained, workspace, monkeypatch):
    """Beside wandb: AdamW, gradient clipping, Huber loss and a data loader with a worker."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    try:
        folder = trained(
            "logged", "--efa", *SMALL, "--efa_lr_factor", "0.5", "--wandb", "--wandb_project", "p", "--wandb_name", "logged",
            "--wandb_dir", str(workspace), "--optimizer", "adamw", "--clip_grad", "1", "--loss", "huber", "--num_workers", "1",
        )  # fmt: skip
        logged, everything = dict(wandb.run.config), json.loads(wandb.run.summary["params"])
    finally:
        wandb.finish()
    config = efa_config(load(folder / "logged.model"))
    assert isinstance(config.max_length, float)
    assert logged["efa"] == {**config.to_dict(), "lr_factor": 0.5, "weight_decay": None, "freeze_base": False}
    assert everything["efa"] == logged["efa"] and logged["lr"] == 0.01


def test_wandb_without_efa_is_that_of_mace(workspace, monkeypatch):
    from mace.tools import scripts_utils

    seen = {}
    monkeypatch.setattr(tools, "init_wandb", lambda **options: seen.update(options))
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "run", type("Run", (), {"summary": seen}))
    args = tools.build_default_arg_parser().parse_args(["--name", "x"])
    args.efa_config, args.efa_training = None, None  # what efa-mace-train leaves without EFA options
    scripts_utils.setup_wandb(args)
    assert set(seen["config"]) == set(args.wandb_log_hypers)
    assert "efa" not in json.loads(seen["params"])


def test_training_on_virials(trained, workspace, ethanol):
    """What a non-periodic structure has: its stress has no volume to refer to, MACE puts a made-up cell around it."""
    structures = ase.io.read(workspace / "train.xyz", ":")
    for i, atoms in enumerate(structures):
        atoms.info["REF_virials"] = np.diag([1.0, 2.0, 3.0 + 0.1 * i]).reshape(-1)
    train, valid = str(workspace / "virials_train.xyz"), str(workspace / "virials_valid.xyz")
    ase.io.write(train, structures[:8])
    ase.io.write(valid, structures[8:])
    flags = ("--train_file", train, "--valid_file", valid, "--loss", "virials", "--virials_key", "REF_virials")
    folder = trained("virials", "--efa", *SMALL, *flags, "--virials_weight", "10")
    model = load(folder / "virials.model")
    # The error that MACE reports is that of the saved model, EFA's part included.
    reported = [record for record in records(folder) if record["mode"] == "eval"][-1]["rmse_virials"]
    chosen = structures[8:]
    target = torch.stack([torch.tensor(a.info["REF_virials"]).reshape(3, 3) for a in chosen])
    found = evaluate(model, *chosen, compute_virials=True)["virials"]
    assert (found - target).square().mean().sqrt().item() == pytest.approx(reported, rel=1e-6)
    stripped = evaluate(strip_efa(model), *chosen, compute_virials=True)["virials"]
    assert (found - stripped).abs().max() > 1e-6


def test_two_heads_from_scratch_and_one_selected(trained, workspace, ethanol, monkeypatch):
    """Each head is validated on its own; the selected one computes what it computed among the others."""
    from mace.cli import select_head

    one, two = split(workspace, "head", slice(0, 6), slice(6, 12))
    heads = {"one": {"train_file": one, "E0s": "average"}, "two": {"train_file": two, "E0s": "average"}}
    folder = trained("heads", "--efa", *SMALL, "--heads", repr(heads), "--batch_size", "3")
    assert {record["head"] for record in records(folder) if record["mode"] == "eval"} == {"one", "two"}
    path = folder / "heads.model"
    monkeypatch.setattr("sys.argv", ["mace_select_head", "--head_name", "two", str(path)])
    dtype = torch.get_default_dtype()
    select_head.main()
    torch.set_default_dtype(dtype)
    both, single = load(path), load(f"{path}.two")
    assert has_efa(single) and single.heads == ["two"]
    data = batch_of(both, ethanol)
    expected = both({**data, "head": torch.tensor([1])})["energy"].item()
    assert expected != both({**data, "head": torch.tensor([0])})["energy"].item()
    assert evaluate(single, ethanol)["energy"].item() == pytest.approx(expected, abs=1e-12)


def test_prepared_hdf5_and_statistics(trained, workspace, ethanol, monkeypatch):
    """`mace_prepare_data`, and the options that are 'auto' from what it wrote."""
    from mace.cli import preprocess_data

    prefix = workspace / "prepared"
    prefix.mkdir()
    e0s = "{1: -0.1, 6: -0.2, 8: -0.3}"
    monkeypatch.setattr(
        "sys.argv",
        [
            "mace_prepare_data", "--train_file", str(workspace / "train.xyz"), "--valid_fraction", "0.25", "--r_max", "2.0",
            "--h5_prefix", f"{prefix}/", "--E0s", e0s, "--energy_key", "REF_energy", "--forces_key", "REF_forces",
            "--compute_statistics", "--num_process", "1", "--atomic_numbers", "[1, 6, 8]", "--seed", "3",
        ],
    )  # fmt: skip
    preprocess_data.main()
    files = ("--train_file", str(prefix / "train"), "--valid_file", str(prefix / "val"))
    folder = trained("from_hdf5", "--efa", *SMALL, *files, "--statistics_file", str(prefix / "statistics.json"))
    config = efa_config(load(folder / "from_hdf5.model"))
    assert config.normalization == len(ethanol)
    largest = max(atoms.get_all_distances().max() for atoms in ase.io.read(workspace / "train.xyz", ":"))
    assert 1.1 * largest < config.max_length <= 1.2 * largest + 1e-3

    with h5py.File(next((prefix / "val").rglob("*.h5")), "r+") as file:
        pbc = next(iter(file["config_batch_0"].values()))["pbc"]
        pbc[...] = [False, True, False]
    (prefix / "final").mkdir()
    for path in (prefix / "val").rglob("*.h5"):
        path.rename(prefix / "final" / f"{path.stem}_test.h5")
    others = ("--train_file", str(workspace / "train.xyz"), "--valid_fraction", "0.2", "--test_dir", str(prefix / "final"))
    with pytest.raises(EFAError, match=r"periodic structure .config_batch_0/config_\d+ of .*_test.h5"):
        trained("periodic_test", "--efa", *SMALL, *others)
    assert not list((workspace / "periodic_test").rglob("*.pt"))


def test_lmdb_and_the_schedule_free_optimizer(trained, workspace, ethanol):
    from ase.calculators.singlepoint import SinglePointCalculator
    from mace.tools.fairchem_dataset.lmdb_dataset_tools import LMDBDatabase

    pytest.importorskip("schedulefree")
    structures = ase.io.read(workspace / "train.xyz", ":")
    paths = [str(workspace / f"{part}.aselmdb") for part in ("train", "valid")]
    for path, chosen in zip(paths, (structures[:8], structures[8:]), strict=True):
        with LMDBDatabase(path, readonly=False) as database:
            for atoms in chosen:
                labelled = ase.Atoms(atoms.symbols, atoms.positions)
                labels = {"energy": atoms.info["REF_energy"], "forces": atoms.arrays["REF_forces"]}
                labelled.calc = SinglePointCalculator(labelled, **labels)
                database.write(labelled)
    files = ("--train_file", paths[0], "--valid_file", paths[1], "--atomic_numbers", "[1, 6, 8]")
    flags = ("--E0s", "{1: -0.1, 6: -0.2, 8: -0.3}", "--optimizer", "schedulefree")
    model = load(trained("from_lmdb", "--efa", *SMALL, *files, *flags) / "from_lmdb.model")
    assert efa_config(model).normalization == len(ethanol)
    assert len(last_maps(model)) == 4 and all(p.abs().max() > 1e-6 for p in last_maps(model))


DEEP = (
    "--model MACE --num_interactions 3 --num_channels 4 --max_L 2 --interaction RealAgnosticDensityResidualInteractionBlock "
    "--pair_repulsion --distance_transform Agnesi"
).split()
FLAT = (
    "--num_interactions 1 --num_channels 4 --max_L 0 --interaction_first RealAgnosticDensityInteractionBlock "
    "--loss universal --compute_stress True"
).split()


@pytest.mark.parametrize("name, flags, layers, dtype", [("deep", DEEP, 3, "float64"), ("flat", FLAT, 1, "float32")])
def test_other_architectures(trained, ethanol, name, flags, layers, dtype):
    """`--model MACE` is a ScaleShiftMACE with shift 0, in MACE's own code; and EFA goes into that, too."""
    folder = trained(name, "--efa", *SMALL, *flags, dtype=dtype)
    model = load(folder / f"{name}.model")
    assert [hasattr(product, "efa") for product in model.products] == [True] * layers
    assert {p.dtype for p in efa_parameters(model).values()} == {getattr(torch, dtype)}
    compiled = torch.jit.load(folder / f"{name}_compiled.model")
    expected, found = evaluate(model, ethanol), compiled(batch_of(model, ethanol))
    assert torch.allclose(found["forces"], expected["forces"], rtol=0, atol=1e-10 if dtype == "float64" else 2e-5)


def test_models_without_energies_of_their_own_are_refused(trained):
    with pytest.raises(EFAError, match="got AtomicDipolesMACE: train with --model ScaleShiftMACE or MACE"):
        trained("dipoles", "--efa", "--model", "AtomicDipolesMACE", "--loss", "dipole", "--error_table", "DipoleRMSE")


ARCHITECTURES = {
    "two layers": {},
    "last layer keeps its irreps": {"keep_last_layer_irreps": True},
    "one layer": {"num_interactions": 1},
    "three layers": {"num_interactions": 3, "hidden_irreps": "4x0e+4x1o+4x2e"},
    "scalars": {"hidden_irreps": "4x0e"},
    "no skip": {"interaction_cls": "RealAgnosticInteractionBlock"},
    "density": {"interaction_cls": "RealAgnosticDensityResidualInteractionBlock"},
    "density, no skip": {"interaction_cls": "RealAgnosticDensityInteractionBlock"},
    "attention": {"interaction_cls": "RealAgnosticAttResidualInteractionBlock"},
    "nonlinear": {"interaction_cls": "RealAgnosticResidualNonLinearInteractionBlock", "edge_irreps": "4x0e+4x1o"},
}
VARIANTS = {
    "default": {},
    "frequencies": {"frequencies_trainable": True},
    "unparametrized": {"parametrized": False},
    "no contraction": {"contraction": False},
    "no bias": {"use_bias": False},
    "high degrees": {"max_degree_qk": None, "activation": "gelu"},
    "scalars only": {"max_degree_qk": 0, "max_degree_v": 0},
    "no self": {"include_self": False},
    "tensor integration": {"tensor_integration": True, "ti_parametrize_coupling_paths": True},
    "emulated": {"emulate": True},
}


def build(**options) -> torch.nn.Module:
    """A small float64 ScaleShiftMACE, untrained, for the elements of ethanol."""
    from e3nn import o3

    classes = modules.interaction_classes
    options = {"hidden_irreps": "4x0e+4x1o", "num_interactions": 2, **options}
    options.update({name: o3.Irreps(options[name]) for name in ("hidden_irreps", "edge_irreps") if name in options})
    options["interaction_cls"] = classes[options.get("interaction_cls", "RealAgnosticResidualInteractionBlock")]
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return modules.ScaleShiftMACE(
            r_max=2.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=2, num_elements=3, atomic_numbers=[1, 6, 8],
            interaction_cls_first=classes["RealAgnosticInteractionBlock"], atomic_energies=np.zeros((1, 3)),
            MLP_irreps=o3.Irreps("4x0e"), avg_num_neighbors=3.0, correlation=2, gate=torch.nn.functional.silu, radial_MLP=[8],
            atomic_inter_scale=1.0, atomic_inter_shift=0.0, **options,
        )  # fmt: skip
    finally:
        torch.set_default_dtype(dtype)


def unreached(model, atoms) -> list[str]:
    """EFA parameters without a gradient after the loss of one training step; DistributedDataParallel would stop at them."""
    model.zero_grad(set_to_none=True)
    out = evaluate(model, atoms, training=True)
    (out["energy"].square().sum() + out["forces"].square().sum()).backward()
    return [name for name, p in efa_parameters(model).items() if p.grad is None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_of_every_architecture(ethanol, architecture):
    stock = build(**ARCHITECTURES[architecture])
    config = EFAConfig(max_length=8.0, num_features_qk=4, num_features_v=4, mlp_features=8)
    model = insert_efa(stock, config)
    before, after = (evaluate(m, ethanol, compute_stress=True) for m in (stock, model))
    assert torch.equal(before["energy"], after["energy"]) and torch.equal(before["forces"], after["forces"])
    assert unreached(model, ethanol) == []
    randomize(model)
    assert evaluate(model, ethanol)["energy"].item() != after["energy"].item()
    moved, step = ethanol.copy(), 1e-4
    sides = []
    for sign in (1, -1):
        moved.positions[2, 1] = ethanol.positions[2, 1] + sign * step
        sides.append(evaluate(model, moved, compute_force=False)["energy"].item())
    assert evaluate(model, ethanol)["forces"][2, 1].item() == pytest.approx(-(sides[0] - sides[1]) / (2 * step), abs=1e-6)


@pytest.fixture(scope="module")
def small_stock():
    return build(num_interactions=3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_parameter_is_without_gradient(small_stock, ethanol, variant):
    """MACE runs DistributedDataParallel with find_unused_parameters=False: one idle parameter, and training stops."""
    sizes = {"num_features_qk": 4, "num_features_v": 4} if variant != "unparametrized" else {}
    config = EFAConfig(max_length=8.0, mlp_features=8, **{**sizes, **VARIANTS[variant]})
    assert unreached(insert_efa(small_stock, config), ethanol) == []


# MACE opens a process group for GPUs only, and names a GPU to DDP: on the CPU both have to be done for it.
PROCESS = """
import sys
import torch.distributed
from torch.nn.parallel import DistributedDataParallel
from mace.cli import run_train
from efa_addons.hosts.mace import train
torch.distributed.init_process_group("gloo")
run_train.DDP = lambda model, device_ids: DistributedDataParallel(model)
train.main(sys.argv[1:])
"""


def test_two_processes_give_what_one_gives(trained, workspace):
    """Half a batch each; fixed statistics, because MACE takes them from each process's own share of the data."""
    train, valid = split(workspace, "shared", slice(0, 8), slice(8, 12))
    flags = ["--efa", *SMALL, "--train_file", train, "--valid_file", valid, "--mean", "0.0", "--std", "1.0"]
    flags += ["--compute_avg_num_neighbors", "False", "--avg_num_neighbors", "3.0", "--max_num_epochs", "2"]
    alone = load(trained("alone", *flags, "--batch_size", "8") / "alone.model")

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = workspace / "together"
    argv = [sys.executable, "-W", "ignore", "-c", PROCESS, *FLAGS, *flags, "--name", "together", "--work_dir", str(folder)]
    argv += ["--batch_size", "4", "--default_dtype", "float64", "--distributed", "--launcher", "torchrun"]
    address = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    running = [
        subprocess.Popen(
            argv, env={**address, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=300)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    both = dict(load(folder / "together.model").named_parameters())
    for name, parameter in alone.named_parameters():
        assert torch.allclose(parameter, both[name], rtol=0, atol=1e-12), name
