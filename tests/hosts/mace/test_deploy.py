"""Saved models serve MACE's own calculator in a process that knows nothing of the training."""

from __future__ import annotations

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import ase.io
import pytest
import torch
from e3nn.util import jit
from host_support import fresh_process
from mace_support import SMALL, batch_of, evaluate, randomize

from efa_addons import EFAConfig, EFAError
from efa_addons.cli import main
from efa_addons.hosts.mace import efa_config, has_efa, insert_efa, load, without_efa

CALCULATE = """
import json, ase.io
from mace.calculators import MACECalculator
atoms = ase.io.read("train.xyz", index=0)
atoms.calc = MACECalculator(model_paths={path!r}, device="cpu", default_dtype="{dtype}")
print(json.dumps([atoms.get_potential_energy(), atoms.get_forces().tolist()]))
"""


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("suffix", [".model", "_compiled.model"])
def test_calculator_in_a_fresh_process(trained, workspace, ethanol, dtype, suffix):
    name = f"efa_{dtype}"
    folder = trained(name, "--efa", *SMALL, dtype=dtype)
    path = folder / f"{name}{suffix}"
    assert path.exists(), "MACE swallows a failing compilation"
    output = fresh_process(CALCULATE.format(path=str(path), dtype=dtype), workspace)
    energy, forces = json.loads(output.splitlines()[-1])
    model = load(folder / f"{name}.model")
    assert has_efa(model)
    expected = evaluate(model, ethanol)
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    assert energy == pytest.approx(expected["energy"].item(), abs=tolerance)
    assert torch.allclose(torch.tensor(forces, dtype=torch.float64), expected["forces"].double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("layers", [None, [1]])
def test_torchscript_equals_eager(stock_model, ethanol, layers):
    config = EFAConfig(max_length=8.0, num_features_qk=4, num_features_v=4, layers=layers)
    model = randomize(insert_efa(stock_model, config))
    scripted = jit.compile(deepcopy(model))
    eager, compiled = evaluate(model, ethanol, compute_virials=True), scripted(batch_of(model, ethanol), compute_virials=True)
    for quantity in ("energy", "forces", "virials"):
        assert torch.allclose(eager[quantity], compiled[quantity], rtol=0, atol=1e-10), quantity
    ethanol.pbc = True
    with pytest.raises(torch.jit.Error, match="periodic"):
        scripted(batch_of(model, ethanol))
    ethanol.cell = [4.0, 4.0, 4.0]
    told_by_edges = batch_of(model, ethanol)
    del told_by_edges["pbc"]
    with pytest.raises(EFAError, match="periodic structure .an edge to a periodic image"):
        model(dict(told_by_edges))
    with pytest.raises(torch.jit.Error, match="without pbc, as from LAMMPS"):
        scripted(dict(told_by_edges))


def test_command_line_insert_and_strip(trained, workspace, ethanol, capsys):
    stock = trained("stock", stock=True) / "stock.model"
    with_efa, without = workspace / "inserted.model", workspace / "stripped.model"
    options = ["--max_length", "9", "--max_degree_v", "1", "--data", str(workspace / "train.xyz")]
    assert main(["insert", "--host", "mace", str(stock), str(with_efa), *options]) == 0
    said = capsys.readouterr().out
    assert "train.xyz: not used, since no option is 'auto'" in said and "EFA in 2 of 2 layers" in said
    assert main(["strip", "--host", "mace", str(with_efa), str(without)]) == 0
    expected = evaluate(load(stock), ethanol)
    for path in (with_efa, without):
        found = evaluate(load(path), ethanol)
        assert torch.equal(found["energy"], expected["energy"]) and torch.equal(found["forces"], expected["forces"])
    assert has_efa(load(with_efa)) and not has_efa(load(without))

    for arguments, message in (
        (["insert", "--host", "mace", str(stock), str(with_efa), "--max_length", "9"], "exists already"),
        (["insert", "--host", "mace", str(stock) + "x", str(without) + "x", "--max_length", "9"], "does not exist"),
        (
            ["insert", "--host", "mace", str(stock), str(without) + "x", "--normalization", "auto"],
            "normalization: auto is computed",
        ),
        (["insert", "--host", "mace", str(stock), str(without) + "x", "--max_length", "auto"], "max_length: auto is computed"),
        (["strip", "--host", "mace", str(stock), str(without) + "x"], "no EFA to take out"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err


def test_insert_takes_max_length_from_data_or_says_what_it_took(trained, workspace, tmp_path, ethanol, capsys):
    stock = trained("stock", stock=True) / "stock.model"
    assert main(["insert", "--host", "mace", str(stock), str(tmp_path / "a.model")]) == 0
    assert "max_length: 20.0 Å, since none was given" in capsys.readouterr().out
    data = ["--data", str(workspace / "train.xyz"), "--max_length_margin", "1", "--normalization", "auto"]
    assert main(["insert", "--host", "mace", str(stock), str(tmp_path / "b.model"), *data]) == 0
    config = efa_config(load(tmp_path / "b.model"))
    assert config.max_length >= ethanol.get_all_distances().max() - 1e-3 and config.max_length < 6
    assert config.normalization == len(ethanol)


def test_a_file_of_structures_may_have_an_at_in_its_name(trained, tmp_path, ethanol, capsys):
    stock = str(trained("stock", stock=True) / "stock.model")
    path = tmp_path / "m@3.xyz"
    ase.io.write(path, ethanol, format="extxyz")
    assert main(["insert", stock, str(tmp_path / "a.model"), "--data", str(path)]) == 0
    assert main(["insert", stock, str(tmp_path / "b.model"), "--max_length", "9", "--data", str(tmp_path / "none.xyz")]) == 2
    assert "none.xyz" in capsys.readouterr().err


def test_insert_options_from_a_file(trained, tmp_path, capsys):
    stock = trained("stock", stock=True) / "stock.model"
    options = tmp_path / "efa.yaml"
    options.write_text("efa: {max_length: 9, layers: [0]}\n")
    assert main(["insert", "--host", "mace", "--config", str(options), str(stock), str(tmp_path / "a.model")]) == 0
    assert "1 of 2 layers" in capsys.readouterr().out
    options.write_text("efa: {max_lenght: 9}\n")
    assert main(["insert", "--host", "mace", "--config", str(options), str(stock), str(tmp_path / "b.model")]) == 2
    assert "did you mean 'max_length'" in capsys.readouterr().err


def test_insert_takes_the_options_of_a_training_configuration(trained, workspace, tmp_path, ethanol, capsys):
    stock = str(trained("stock", stock=True) / "stock.model")
    shipped = Path(__file__).parents[3] / "configs/mace/efa.yaml"
    insert = ["insert", "--host", "mace", "--data", str(workspace / "train.xyz"), "--config"]
    assert main([*insert, str(shipped), stock, str(tmp_path / "shipped.model")]) == 0
    assert "options of training, not used here: lr_factor, weight_decay, freeze_base" in capsys.readouterr().out
    config = efa_config(load(tmp_path / "shipped.model"))
    assert config.normalization == len(ethanol) and config.max_degree_qk == 0

    options = tmp_path / "efa.yaml"
    for value in ("true", ""):  # nothing: all options commented out, say
        options.write_text(f"name: run\nefa: {value}\n")
        assert main([*insert, str(options), stock, str(tmp_path / f"defaults{value}.model")]) == 0
        config = efa_config(load(tmp_path / f"defaults{value}.model"))
        assert config == EFAConfig(max_length=config.max_length) and config.max_length < 7

    for section, message in (("{lr_facto: 2}", "unknown EFA option"), ("false", "got False"), ("[9]", "got [9]")):
        options.write_text(f"efa: {section}\n")
        assert main([*insert, str(options), stock, str(tmp_path / "refused.model")]) == 2
        assert message in capsys.readouterr().err
    options.write_text("name: run\nr_max: 5\n")
    assert main([*insert, str(options), stock, str(tmp_path / "refused.model")]) == 2
    assert "has no section 'efa:', and no option of EFA at its top" in capsys.readouterr().err
    assert not (tmp_path / "refused.model").exists()


def test_a_compiled_model_is_refused_by_name(trained):
    folder = trained("efa_float64", "--efa", *SMALL)
    with pytest.raises(EFAError, match="give the .model file"):
        insert_efa(torch.jit.load(folder / "efa_float64_compiled.model"), EFAConfig(max_length=3.0))
    with pytest.raises(EFAError, match="efa_float64_compiled.model is a compiled model: give the .model file"):
        load(folder / "efa_float64_compiled.model")


def test_what_would_lose_efa_is_refused(stock_model):
    from mace.calculators.lammps_mliap_mace import LAMMPS_MLIAP_MACE
    from mace.tools.scripts_utils import extract_config_mace_model

    model = insert_efa(stock_model, EFAConfig(max_length=8.0))
    with pytest.raises(EFAError, match="cannot be rebuilt"):
        type(model)(**extract_config_mace_model(model))
    with pytest.raises(EFAError, match="ML-IAP"):
        LAMMPS_MLIAP_MACE(model)


@pytest.mark.parametrize("asked", ["compute_atomic_stresses", "compute_edge_forces"])
def test_outputs_that_would_lack_efa_are_refused(stock_model, ethanol, asked):
    """MACE sums them up over edges: without the refusal atomic virials do not add up to the virial."""
    model = insert_efa(stock_model, EFAConfig(max_length=8.0))
    with pytest.raises(EFAError, match="sums over edges"):
        evaluate(model, ethanol, compute_stress=True, **{asked: True})
    with without_efa(model):
        assert evaluate(model, ethanol, **{asked: True})["edge_forces"] is not None


def test_torch_compile_in_one_graph(stock_model, ethanol, double):
    """What MACECalculator(compile_mode=...) and `mace.tools.compile` do, without inductor: rebuild, trace without a break."""
    from mace.tools import compile as mace_compile
    from mace.tools import scripts_utils

    model = randomize(insert_efa(stock_model, EFAConfig(max_length=8.0, method="quadrature")))
    expected = evaluate(model, ethanol, training=True)
    prepared = mace_compile.prepare(scripts_utils.extract_model)(model=model, map_location="cpu")
    data = batch_of(model, ethanol)
    data["positions"].requires_grad_(True)
    found = torch.compile(prepared, backend="eager", fullgraph=True)(data, training=True)
    torch.compiler.reset()
    for name in ("energy", "forces"):
        assert torch.allclose(found[name], expected[name], rtol=0, atol=1e-9), name


def test_lammps_export_refuses_ghosts_and_periodic_images(trained, workspace, ethanol, monkeypatch):
    """What pair_mace passes with `no_domain_decomposition` on one rank is served; what it passes otherwise is refused."""
    from mace.cli import create_lammps_model

    path = trained("efa_float64", "--efa", *SMALL) / "efa_float64.model"
    monkeypatch.setattr("sys.argv", ["mace_create_lammps_model", str(path)])
    create_lammps_model.main()
    exported = torch.jit.load(f"{path}-lammps.pt")
    model = load(path)
    expected = evaluate(model, ethanol)

    def lammps(local, shifts=None):
        data = batch_of(model, ethanol)
        data = {k: data[k] for k in ("positions", "node_attrs", "edge_index", "batch", "ptr", "cell", "shifts", "unit_shifts")}
        if shifts is not None:
            data["shifts"] = shifts.expand(data["shifts"].shape).clone()
        return exported(data, local, False)

    everyone = torch.ones(len(ethanol), dtype=torch.float64)
    served = lammps(everyone)
    assert torch.allclose(served["total_energy_local"], expected["energy"], rtol=0, atol=1e-9)
    assert torch.allclose(served["forces"], expected["forces"], rtol=0, atol=1e-9)
    ghost = everyone.clone()
    ghost[-1] = 0
    with pytest.raises(torch.jit.Error, match="no_domain_decomposition"):
        lammps(ghost)
    with pytest.raises(torch.jit.Error, match="periodic"):
        lammps(everyone, torch.tensor([30.0, 0.0, 0.0], dtype=torch.float64))

    # MACE makes such a file, too; its script knows nothing of EFA then, and passes no ghosts on
    compiled = path.with_name("efa_float64_compiled.model")
    subprocess.run([sys.executable, "-m", "mace.cli.create_lammps_model", str(compiled)], check=True, capture_output=True)
    exported = torch.jit.load(f"{compiled}-lammps.pt")
    for local in (everyone, ghost):
        with pytest.raises(torch.jit.Error, match="Give mace_create_lammps_model the .model file"):
            lammps(local)
