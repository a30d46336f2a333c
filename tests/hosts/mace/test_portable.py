"""The portable format: the same model again, from numbers and text alone."""

from __future__ import annotations

from argparse import Namespace
from copy import deepcopy

import pytest
import torch
from host_support import fresh_process
from mace.modules.models import ScaleShiftMACE
from mace_support import SMALL, evaluate, randomize

from efa_addons import EFAConfig, EFAError
from efa_addons.cli import main
from efa_addons.hosts.mace import efa_config, has_efa, insert_efa, load, save, train

CONFIG = EFAConfig(max_length=8.0, num_features_qk=4, layers=(1,), tensor_integration=True)


def same(found: torch.nn.Module, expected: torch.nn.Module, atoms) -> None:
    assert type(found) is type(expected) and efa_config(found) == efa_config(expected)
    assert list(found.state_dict()) == list(expected.state_dict())
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in found.state_dict().items())
    for quantity in ("energy", "forces"):
        assert torch.equal(evaluate(found, atoms)[quantity], evaluate(expected, atoms)[quantity]), quantity


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_model_comes_back_as_it_was(stock_model, ethanol, tmp_path, dtype):
    model = randomize(insert_efa(stock_model, CONFIG)).to(dtype)
    for given in (model, stock_model.to(dtype)):
        path = tmp_path / f"{has_efa(given)}.efa"
        save(given, path)
        before = torch.get_default_dtype()
        same(load(path), given, ethanol)
        assert torch.get_default_dtype() == before
        torch.load(path, weights_only=True)  # runs no code
    stock_model.double()


@pytest.mark.parametrize(
    "flags",
    [
        ("--pair_repulsion", "--distance_transform", "Agnesi"),
        (
            "--interaction",
            "RealAgnosticDensityResidualInteractionBlock",
            "--interaction_first",
            "RealAgnosticDensityInteractionBlock",
        ),
        ("--num_interactions", "1", "--gate", "tanh"),
    ],
    ids=["radial", "density", "one layer"],
)
def test_mace_options_survive(trained, ethanol, tmp_path, flags):
    name = "portable_" + flags[0].strip("-")
    stock = load(trained(name, *flags, stock=True) / f"{name}.model")
    model = randomize(insert_efa(stock, CONFIG.replace(layers=None)))
    save(model, tmp_path / "m.efa")
    same(load(tmp_path / "m.efa"), model, ethanol)


def test_training_writes_it_and_the_calculator_takes_it(trained, ethanol):
    folder = trained("efa", "--efa", *SMALL)
    same(load(folder / "efa.efa"), load(folder / "efa.model"), ethanol)
    code = (
        "import sys, ase.io; from mace.calculators import MACECalculator; from efa_addons.hosts.mace import load\n"
        "atoms = ase.io.read('train.xyz', index=0)\n"
        f"atoms.calc = MACECalculator(models=[load({str(folder / 'efa.efa')!r})], device='cpu', default_dtype='float64')\n"
        "print(atoms.get_potential_energy())"
    )
    energy = float(fresh_process(code, folder.parent).splitlines()[-1])
    assert energy == pytest.approx(evaluate(load(folder / "efa.model"), ethanol)["energy"].item(), abs=1e-10)


def test_command_line(trained, tmp_path, ethanol, capsys):
    model = trained("efa", "--efa", *SMALL) / "efa.model"
    portable, back, stock = tmp_path / "a.efa", tmp_path / "b.model", tmp_path / "c.efa"
    assert main(["convert", "--host", "mace", str(model), str(portable)]) == 0
    assert main(["convert", "--host", "mace", str(portable), str(back)]) == 0
    same(load(back), load(model), ethanol)
    assert main(["strip", "--host", "mace", str(portable), str(stock)]) == 0
    assert type(load(stock)) is ScaleShiftMACE
    capsys.readouterr()
    assert main(["inspect", str(portable)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("portable format 1, written by efa_addons") and "layer 1: 4x0e+4x1o" in text


def test_what_cannot_be_rebuilt_is_not_written(stock_model, tmp_path, monkeypatch):
    """A description of a model that gives another model: the file would be a lost checkpoint."""
    from efa_addons.hosts.mace import portable

    original = portable.extract_config_mace_model

    def incomplete(model):
        config = original(model)
        config["gate"] = torch.tanh
        return config

    monkeypatch.setattr(portable, "extract_config_mace_model", incomplete)
    with pytest.raises(EFAError, match="cannot be rebuilt from MACE's description"):
        save(stock_model, tmp_path / "m.efa")
    assert not (tmp_path / "m.efa").exists()


def test_another_models_weights_are_an_error(stock_model, tmp_path):
    model = insert_efa(stock_model, CONFIG)
    save(model, tmp_path / "m.efa")
    content = torch.load(tmp_path / "m.efa", weights_only=True)
    content["efa_addons"]["efa_config"]["num_features_qk"] = 8
    torch.save(content, tmp_path / "other.efa")
    with pytest.raises(EFAError, match="these weights, written by mace-torch .* do not belong"):
        load(tmp_path / "other.efa")


def test_what_mace_itself_cannot_describe_is_refused(stock_model, tmp_path):
    model = deepcopy(stock_model)
    del model.radial_embedding.bessel_fn.bessel_weights  # as in a model with --radial_type gaussian
    with pytest.raises(EFAError, match="MACE cannot describe this model .* keep the .model file"):
        save(model, tmp_path / "m.efa")


def test_other_kinds_of_model_are_refused(stock_model, tmp_path):
    with pytest.raises(EFAError, match="holds a ScaleShiftMACE, got Linear"):
        save(torch.nn.Linear(1, 1), tmp_path / "m.efa")


def test_a_portable_file_of_an_earlier_run_is_told(trained, caplog):
    """It stays: it may be all that is left of that run."""
    folder = trained("stock", stock=True)
    left = folder / "stock.efa"
    left.touch()
    train._write_portable(Namespace(distributed=False, model_dir=str(folder), name="stock"))
    assert f"{left} beside it is of an earlier run" in caplog.text and left.exists()
    left.unlink()
