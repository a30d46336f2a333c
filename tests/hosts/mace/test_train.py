"""`efa-mace-train`: stock MACE without EFA options, and EFA from flags or YAML with them."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import ase.io
import pytest
import torch
import yaml
from gpu_support import KERNELS_RUN_ON, kernels
from mace import tools
from mace.calculators import MACECalculator
from mace_support import SMALL, losses

from efa_addons import EFAConfig, EFAError
from efa_addons.hosts import base
from efa_addons.hosts.mace import efa_config, has_efa, insert_efa, load, train
from efa_addons.hosts.mace.hooks import resolve_from
from efa_addons.hosts.mace.insert import efa_layers, efa_parameters
from efa_addons.hosts.mace.options import TrainingOptions, add_flags, options_from, take_section
from efa_addons.ops.backends import backend


def options(*flags, section=None):
    parser = tools.build_default_arg_parser()
    add_flags(parser)
    return options_from(parser.parse_args(["--name", "x", *flags]), section)


def test_without_efa_options_the_run_is_stock_mace(trained, stock_model):
    folder = trained("without")
    model = load(folder / "without.model")
    assert type(model) is type(stock_model)
    stock = stock_model.state_dict()
    assert all(torch.equal(value, stock[name]) for name, value in model.state_dict().items())
    assert losses(folder) == losses(folder.parent / "stock")


def test_efa_is_trained(trained, stock_model):
    """Every EFA parameter moves away from where it started, and so the last, zero-initialised, ones are not zero."""
    model = load(trained("efa", "--efa", *SMALL) / "efa.model")
    assert has_efa(model)
    last = {name: p for name, p in efa_parameters(model).items() if name.endswith(("mlp.2.weight", "out.weight"))}
    assert len(last) == 4 and all(p.abs().max() > 0 for p in last.values())
    # Without blocks in the optimizer the inner weights would be those of the same seed.
    fresh = efa_parameters(insert_efa(stock_model, efa_config(model), seed=3))
    assert all(not torch.equal(p, fresh[name]) for name, p in efa_parameters(model).items())


def test_max_length_auto_is_the_largest_distance_of_the_training_set(trained, workspace):
    import ase.io

    structures = ase.io.read(workspace / "train.xyz", ":")
    largest = max(atoms.get_all_distances().max() for atoms in structures)
    length = efa_config(load(trained("efa", "--efa", *SMALL) / "efa.model")).max_length
    assert 1.1 * largest < length <= 1.2 * largest + 1e-3


def test_resolve_counts_atoms_and_skips_known_numbers(ethanol):
    class Structure:
        positions = torch.tensor(ethanol.positions)

    resolved = resolve_from(EFAConfig(normalization="auto", max_length_margin=1.0), [Structure(), Structure()])
    assert resolved.normalization == len(ethanol)
    assert resolved.max_length == pytest.approx(ethanol.get_all_distances().max(), abs=1e-3)
    fixed = EFAConfig(max_length=7.0)
    assert resolve_from(fixed, []) is fixed
    periodic = Structure()
    periodic.pbc = torch.tensor([False, False, True])
    with pytest.raises(EFAError, match=r"periodic structure \(structure 2 of the training set"):
        resolve_from(EFAConfig(), [Structure(), periodic])


def test_yaml_section(trained, workspace):
    section = {"max_length": 9.0, "layers": [1], "num_features_qk": 4, "mlp_features": 8, "tolerance": "1e-4", "lr_factor": 2}
    config = workspace / "run.yaml"
    config.write_text(yaml.safe_dump({"efa": section, "energy_weight": 3.0}))
    model = load(trained("from_yaml", "--config", str(config), "--efa_num_features_v", "2") / "from_yaml.model")
    expected = EFAConfig(max_length=9.0, layers=(1,), num_features_qk=4, num_features_v=2, mlp_features=8, tolerance=1e-4)
    assert efa_config(model) == expected.replace(normalization=9.0)  # the atoms of an ethanol
    assert [hasattr(product, "efa") for product in model.products] == [False, True]


def test_freezing_the_base(trained, stock_model):
    frozen = load(trained("frozen", "--efa", "--efa_freeze_base", "true", *SMALL) / "frozen.model")
    new = efa_parameters(frozen)
    before = dict(insert_efa(stock_model, efa_config(frozen), seed=3).named_parameters())
    # float64, same seed: the stock part starts from the same numbers as a stock run and must still have them
    unfrozen = load(trained("efa", "--efa", *SMALL) / "efa.model")
    assert all(not torch.equal(p, before[name]) for name, p in new.items())
    kept = {name: p for name, p in frozen.named_parameters() if name not in new}
    moved = dict(unfrozen.named_parameters())
    assert any(not torch.equal(p, moved[name]) for name, p in kept.items())
    again = load(trained("frozen2", "--efa", "--efa_freeze_base", "true", *SMALL, "--max_num_epochs", "2") / "frozen2.model")
    assert all(torch.equal(p, dict(again.named_parameters())[name]) for name, p in kept.items())


@pytest.mark.parametrize("with_efa", [True, False])
def test_plots_in_training_leave_frozen_what_is(stock_model, with_efa):
    from mace.cli import visualise_train

    model = insert_efa(stock_model, EFAConfig(max_length=8.0)) if with_efa else deepcopy(stock_model)
    base.freeze_base(model, efa_layers(model), True)
    before = [parameter.requires_grad for parameter in model.parameters()]
    visualise_train.model_inference({}, model, {}, "cpu")  # of no data: it freezes and unfreezes all the same
    after = [parameter.requires_grad for parameter in model.parameters()]
    assert after == before if with_efa else all(after)  # without EFA it is MACE's own


def test_periodic_structures_are_named_before_training(trained, workspace, ethanol):
    atoms = ethanol.copy()
    atoms.info["REF_energy"], atoms.cell, atoms.pbc = 0.0, [30.0, 30.0, 30.0], True
    ase.io.write(workspace / "periodic.xyz", [ethanol, atoms, *[ethanol] * 4])
    flags = ("--efa", "--efa_max_length", "8", "--efa_normalization", "1", *SMALL)
    for i, (option, name) in enumerate((("train", "training"), ("valid", "validation"), ("test", "test"))):
        with pytest.raises(EFAError, match=rf"periodic structure \(structure [1-6], C2H6O, of the {name} set"):
            others = ("--valid_file", str(workspace / "train.xyz"))
            trained(f"periodic_{i}", *flags, *others, f"--{option}_file", str(workspace / "periodic.xyz"))
        assert not list((workspace / f"periodic_{i}").rglob("*.pt"))


def test_lbfgs_says_what_it_does_not_take(stock_model, caplog):
    from mace.tools import scripts_utils

    args = tools.build_default_arg_parser().parse_args(["--name", "x", "--lbfgs"])
    model = insert_efa(stock_model, EFAConfig(max_length=8.0))
    args.efa_training = TrainingOptions()
    scripts_utils.get_params_options(args, model)
    assert not caplog.records
    args.efa_training = TrainingOptions(weight_decay=0.0)
    scripts_utils.get_params_options(args, model)
    assert "LBFGS knows one learning rate and no weight decay" in caplog.text


def test_parameter_group_of_its_own(stock_model):
    from mace.tools import scripts_utils

    args = tools.build_default_arg_parser().parse_args(["--name", "x", "--lr", "0.1", "--weight_decay", "0.5", "--freeze", "6"])
    args.efa_training = TrainingOptions(lr_factor=0.25, weight_decay=0.0)
    model = insert_efa(stock_model, EFAConfig(max_length=8.0))
    groups = {group["name"]: group for group in scripts_utils.get_params_options(args, model)["params"]}
    ids = {id(p) for p in efa_parameters(model).values()}
    assert {id(p) for p in groups["efa"]["params"]} == ids
    assert groups["efa"]["lr"] == pytest.approx(0.025) and groups["efa"]["weight_decay"] == 0.0
    assert not ids & {id(p) for name, group in groups.items() if name != "efa" for p in group["params"]}
    assert all(p.requires_grad for p in efa_parameters(model).values())  # --freeze 6 froze the products around them


def test_switching_on_and_off(capsys):
    auto = {"normalization": "auto"}
    assert options()[0] is None
    assert options("--efa")[0] == EFAConfig(**auto)
    assert options("--efa_max_degree_v", "null", "--efa_tolerance", "1e-4")[0] == EFAConfig(tolerance=1e-4, **auto)
    assert options("--efa_normalization", "2")[0] == EFAConfig(normalization=2.0)
    assert options("--efa", "false", section={"max_length": 3.0})[0] is None
    assert options(section=True)[0] == EFAConfig(**auto)
    assert options(section=False)[0] is None
    assert options(section={})[0] == EFAConfig(**auto)
    assert options(section={"max_length": 3.0, "lr_factor": 0.5}) == (
        EFAConfig(max_length=3.0, **auto),
        TrainingOptions(lr_factor=0.5),
        {"max_length": 3.0},
    )
    assert "EFA is switched off, and its options are not used: max_length" in capsys.readouterr().err
    assert options("--efa_layers", "null")[2] == {"layers": None} and options("--efa")[2] == options()[2] == {}
    assert options("--efa", "false", "--efa_layers", "null")[2] is options(section=False)[2] is None
    assert options("--efa_max_length", "4", section={"max_length": 3.0})[0] == EFAConfig(max_length=4.0, **auto)


def test_bad_options_are_errors():
    with pytest.raises(EFAError, match="unknown EFA option 'max_lenght' .did you mean 'max_length'"):
        options(section={"max_lenght": 3.0})
    with pytest.raises(EFAError, match="num_features_qk must be even"):
        options("--efa_num_features_qk", "3")
    with pytest.raises(EFAError, match="takes true or false"):
        options("--efa", "perhaps")
    with pytest.raises(EFAError, match="takes true or false, got '0'"):
        options("--efa", "0")
    with pytest.raises(EFAError, match="--efa_layers must be YAML, lists in quotes in a shell .while parsing"):
        options("--efa_layers", "[0,")
    with pytest.raises(EFAError, match="lr_factor must be positive"):
        options("--efa_lr_factor", "0")
    with pytest.raises(EFAError, match="section efa: must be"):
        options(section=[1])
    for given in (["--efa_max_lenght", "3"], ["--efa_lr=0.1"]):  # argparse would take the second for --efa_lr_factor
        with pytest.raises(SystemExit, match="efa-mace-train: unknown EFA flag .* .did you mean '--efa_"):
            train.main(["--name", "x", *given])


def test_the_section_is_cut_out_of_the_file(tmp_path):
    config = tmp_path / "run.yaml"
    (tmp_path / "rest").mkdir()
    config.write_text("name: x\nefa: {max_length: 3}\n")
    for spelling in (["--config", str(config)], [f"--config={config}"]):
        argv, section = take_section(["--seed", "1", *spelling, "--lr", "2"], tmp_path / "rest")
        assert section == {"max_length": 3}
        assert argv[:3] == ["--seed", "1", "--config"] and argv[4:] == ["--lr", "2"]
        assert yaml.safe_load(Path(argv[3]).read_text()) == {"name": "x"}
    config.write_text("efa:\n  # max_length: auto\nheads: {zeta: {}, alpha: {}}\n")
    argv, section = take_section(["--config", str(config)], tmp_path / "rest")
    assert section == {}  # there, with all its options commented out
    assert list(yaml.safe_load(Path(argv[1]).read_text())["heads"]) == ["zeta", "alpha"]  # numbered in this order
    config.write_text("efa_layers: [0, 1]\nlr: 1\n")  # flat, which MACE's parser reads, but for lists
    argv, section = take_section(["--config", str(config)], tmp_path / "rest")
    assert section is None and yaml.safe_load(Path(argv[1]).read_text()) == {"efa_layers": "[0, 1]", "lr": 1}
    config.write_text("name: x\nefa_max_lenght: 3\n")
    with pytest.raises(EFAError, match="unknown EFA flag '--efa_max_lenght' .did you mean '--efa_max_length'"):
        take_section(["--config", str(config)], tmp_path / "rest")
    config.write_text("name: x\n")
    assert take_section(["--config", str(config)], tmp_path / "rest") == (["--config", str(config)], None)


def test_shipped_config_is_read_by_the_parser(request, tmp_path):
    path = request.config.rootpath / "configs" / "mace" / "efa.yaml"
    argv, section = take_section(["--config", str(path)], tmp_path)
    parser = tools.build_default_arg_parser()
    add_flags(parser)
    config, *_ = options_from(parser.parse_args(argv), section)
    assert config is not None


def test_restart_goes_on_and_refuses_other_settings(trained, workspace):
    flags = ("--efa", "--efa_max_length", "9", *SMALL)
    folder = trained("restarted", *flags)
    more = ("--work_dir", str(folder), "--restart_latest", "--max_num_epochs", "2")
    before = losses(folder)
    # pytest's `trained` keys by name; MACE finds the checkpoint by --name, so each restart says it again
    for i, (options_, message) in enumerate(
        [
            ((*flags, "--efa_max_degree_qk", "1"), r"max_degree_qk: 1 \(checkpoint: 0\)"),
            ((), "was written with EFA"),
        ]
    ):
        # nor without a restart: after the last epoch MACE would load the earlier run's best checkpoint
        for begin in (more, more[:2]):
            with pytest.raises(EFAError, match=message):
                trained(f"restart_{i}", *options_, *begin, "--name", "restarted")
    trained("restart_same", *flags, *more, "--name", "restarted")
    after = losses(folder)
    assert len(after) > len(before)
    assert min(after[len(before) :]) < before[0]  # not from scratch


@kernels
@pytest.mark.parametrize("taken", ["auto", "triton"])
def test_training_and_calculator_on_a_gpu(taken, trained, ethanol):
    """Or by interpreted kernels (TRITON_INTERPRET=1): as by torch on the CPU, in single precision."""
    flags = ("--efa", *SMALL, "--efa_method", "quadrature")
    runs = {"chunked": "cpu", taken: KERNELS_RUN_ON}
    folders, energies = {}, []
    for name, device in runs.items():
        with backend(name):
            folders[name] = trained(f"efa_by_{name}", *flags, "--device", device, dtype="float32")
    assert losses(folders[taken]) == pytest.approx(losses(folders["chunked"]), rel=1e-2)
    model = str(folders[taken] / f"efa_by_{taken}.model")
    for name, device in runs.items():
        with backend(name):
            ethanol.calc = MACECalculator(model_paths=model, device=device, default_dtype="float32")
            energies.append(ethanol.get_potential_energy())
    assert energies[1] == pytest.approx(energies[0], rel=1e-5)
