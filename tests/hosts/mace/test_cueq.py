"""cuEquivariance: the same model in another layout of features. Only a third layer sees a wrong one."""

from __future__ import annotations

import ase.io
import pytest
import torch
from mace.calculators import MACECalculator
from mace_support import SMALL, evaluate, losses, randomize

from efa_addons import EFAConfig, EFAError
from efa_addons.hosts.mace import has_efa, insert_efa, load, save, strip_efa
from efa_addons.hosts.mace.insert import efa_parameters
from efa_addons.hosts.mace.options import TrainingOptions
from efa_addons.hosts.mace.portable import to_portable
from efa_addons.hosts.mace.probe import batch_of

pytest.importorskip("cuequivariance_torch")

from mace import tools
from mace.cli import convert_cueq_e3nn, convert_e3nn_cueq
from mace.tools import scripts_utils

CONFIG = EFAConfig(max_length=8.0, num_features_qk=4, num_features_v=4, mlp_features=8)


@pytest.fixture(scope="module")
def three_layers(trained) -> torch.nn.Module:
    folder = trained("three", "--num_interactions", "3", stock=True)
    return randomize(insert_efa(load(folder / "three.model"), CONFIG))


def equal(found, expected, tolerance=1e-10):
    for quantity in ("energy", "forces"):
        assert torch.allclose(found[quantity], expected[quantity], rtol=0, atol=tolerance), quantity


def gradients(model, atoms):
    """Name -> derivative of energy and squared forces by EFA's parameters; those of MACE itself have other bases."""
    model.zero_grad()
    out = model(batch_of(model, [atoms]), training=True)
    (out["energy"].sum() + (out["forces"] ** 2).sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in efa_parameters(model).items()}


@pytest.mark.parametrize("layout", ["ir_mul", "mul_ir"])
def test_gradients_by_name(three_layers, ethanol, layout):
    expected = gradients(three_layers, ethanol)
    found = gradients(convert_e3nn_cueq.run(three_layers, layout=layout), ethanol)
    assert found.keys() == expected.keys() and max(grad.abs().max() for grad in expected.values()) > 1e-3
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-9), name


@pytest.mark.parametrize("layout", ["ir_mul", "mul_ir"])
def test_there_and_back(three_layers, ethanol, layout):
    expected = evaluate(three_layers, ethanol)
    converted = convert_e3nn_cueq.run(three_layers, layout=layout)
    assert has_efa(converted) and [product.efa.block.layout for product in converted.products] == [layout] * 3
    equal(evaluate(converted, ethanol), expected)
    back = convert_cueq_e3nn.run(converted)
    assert [product.efa.block.layout for product in back.products] == ["mul_ir"] * 3
    equal(evaluate(back, ethanol), expected)
    with pytest.raises(EFAError, match="this one is for cueq: convert it back first"):
        to_portable(converted)


def test_a_frozen_base_stays_frozen(three_layers):
    """MACE converts the model between building it and asking what is trained."""
    args = tools.build_default_arg_parser().parse_args(["--name", "x"])
    args.efa_training = TrainingOptions(freeze_base=True)
    converted = convert_e3nn_cueq.run(three_layers)
    groups = scripts_utils.get_params_options(args, converted)["params"]
    trained = {id(p) for group in groups for p in group["params"] if p.requires_grad}
    assert trained == {id(p) for p in efa_parameters(converted).values()}


def test_insertion_into_a_converted_model(three_layers, ethanol):
    converted = convert_e3nn_cueq.run(strip_efa(three_layers))
    before = evaluate(converted, ethanol)
    inserted = insert_efa(converted, CONFIG)
    after = evaluate(inserted, ethanol)
    assert torch.equal(before["energy"], after["energy"]) and torch.equal(before["forces"], after["forces"])
    equal(evaluate(randomize(inserted), ethanol), evaluate(three_layers, ethanol))


def test_converters_read_and_write_files_as_before(three_layers, ethanol, tmp_path):
    save(three_layers, tmp_path / "efa.model")
    convert_e3nn_cueq.run(str(tmp_path / "efa.model"), "cueq.model", return_model=False)
    equal(evaluate(load(tmp_path / "efa.cueq.model"), ethanol), evaluate(three_layers, ethanol))
    stock = strip_efa(three_layers)
    convert_e3nn_cueq.run(stock, str(tmp_path / "stock.model"), return_model=False)
    equal(evaluate(load(tmp_path / "stock.model"), ethanol), evaluate(stock, ethanol))


def test_training_and_calculator(trained, workspace, ethanol):
    flags = ("--num_interactions", "3", "--efa", *SMALL)
    plain = trained("three_efa", *flags)
    folder = trained("three_cueq", *flags, "--enable_cueq", "True")
    assert losses(folder) == pytest.approx(losses(plain), rel=1e-6)
    model = load(folder / "three_cueq.model")
    assert has_efa(model) and (folder / "three_cueq_compiled.model").exists()
    equal(evaluate(model, ethanol), evaluate(load(plain / "three_efa.model"), ethanol), 1e-6)
    structures = ase.io.read(workspace / "train.xyz", index=":3")
    for atoms in structures:
        found = {}
        for accelerated in (False, True):
            atoms.calc = MACECalculator(
                models=[load(folder / "three_cueq.model")], device="cpu", default_dtype="float64", enable_cueq=accelerated
            )
            found[accelerated] = atoms.get_potential_energy(), torch.tensor(atoms.get_forces())
        assert found[True][0] == pytest.approx(found[False][0], abs=1e-9)
        assert torch.allclose(found[True][1], found[False][1], rtol=0, atol=1e-9)
