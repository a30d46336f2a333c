"""spktrain, spkdeploy and the calculator, as their users run them, in processes of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from gpu_support import KERNELS_RUN_ON, kernels
from host_support import ROOT, fresh_process, run
from painn_support import SMALL, final_errors, metrics, parameters, train

from efa_addons.hosts.painn import describe, efa_config, efa_parameters, has_efa, load
from efa_addons.hosts.painn.describe import batch_of
from efa_addons.ops.backends import backend

EMA = ["callbacks.ema.decay=0.9"]


@pytest.fixture(scope="session")
def fresh(workspace) -> Path:
    """The tutorial, with the averaged weights that SchNetPack has by default."""
    folder, text = train(workspace, "fresh", "efa_tutorial", *SMALL, *EMA)
    assert "EFA in 2 of 2 layers: pairwise up to" in text and "MiB in a training step of 4 x 9 atoms" in text
    return folder


@pytest.fixture(scope="session")
def base(workspace) -> Path:
    """A PaiNN without EFA: the tutorial without what is EFA's, in SchNetPack's own words."""
    text = (ROOT / "configs" / "painn" / "experiment" / "efa_tutorial.yaml").read_text()
    stock = text.replace("override /model/representation: painn_efa", "override /model/representation: painn")
    start, end = stock.index("    efa: # EFA"), stock.index("  output_modules:")
    (workspace / "stock" / "experiment").mkdir(parents=True)
    (workspace / "stock" / "experiment" / "stock.yaml").write_text(stock[:start] + stock[end:])
    return train(workspace, "base", "stock", *SMALL, configs=workspace / "stock")[0]


def test_the_tutorial_trains_efa(fresh, workspace):
    model = load(fresh / "best_model")
    config = efa_config(model)
    largest = max(atoms.get_all_distances().max() for atoms in ase.io.read(workspace / "train.xyz", ":"))
    assert 1.1 * largest < config.max_length <= 1.2 * largest + 1e-3 and config.normalization == 9.0
    last = [p for name, p in efa_parameters(model).items() if name.endswith(("mlp.2.weight", "out.weight"))]
    assert len(last) == 4 and all(p.abs().max() > 0 for p in last)


def test_training_goes_on_where_it_stopped(fresh, workspace):
    """The same run.id resumes, averaged weights included; 'auto' becomes the same numbers."""
    shutil.copytree(fresh, workspace / "runs" / "again")
    folder, text = train(workspace, "again", "efa_tutorial", *SMALL, *EMA, "trainer.max_epochs=3")
    assert "Resuming from checkpoint" in text
    # Lightning leaves the copied file alone and writes last-v1.ckpt
    names = ("last.ckpt", "last-v1.ckpt")
    before, after = (torch.load(folder / "checkpoints" / name, weights_only=False) for name in names)
    assert (before["epoch"], after["epoch"]) == (1, 2) and set(before["state_dict"]) == set(after["state_dict"])
    averaged = [ckpt["callbacks"]["ExponentialMovingAverage"]["ema"]["shadow_params"] for ckpt in (before, after)]
    assert len(averaged[0]) == len(averaged[1]) == len(list(load(folder / "best_model").parameters()))
    assert efa_config(load(folder / "best_model")) == efa_config(load(fresh / "best_model"))
    others = [*SMALL, *EMA, "trainer.max_epochs=4", "model.representation.efa.max_length=20"]
    _, text = train(workspace, "again", "efa_tutorial", *others, check=False)
    assert "the checkpoint was written with other EFA settings: max_length: 20.0 (checkpoint: " in text


def test_unknown_options_are_errors(workspace):
    _, text = train(workspace, "typo", "efa_tutorial", *SMALL, "+model.representation.efa.max_lenght=3", check=False)
    assert "unknown EFA option 'max_lenght' (did you mean 'max_length'" in text


def test_periodic_training_data_are_refused(workspace):
    from schnetpack.data import ASEAtomsData

    units = {"energy": "eV", "forces": "eV/Ang"}
    data = ASEAtomsData.create(str(workspace / "periodic.db"), distance_unit="Ang", property_unit_dict=units)
    for atoms in ase.io.read(workspace / "train.xyz", ":"):
        atoms.set_cell([20.0, 20.0, 20.0])
        atoms.pbc = True
        data.add_system(atoms, energy=np.array([0.0]), forces=np.zeros((len(atoms), 3)))
    _, text = train(workspace, "periodic", "efa_tutorial", *SMALL, f"data.datapath={workspace / 'periodic.db'}", check=False)
    assert "EFA got a periodic structure" in text


def test_mixed_precision(workspace):
    _, text = train(workspace, "mixed", "efa_tutorial", *SMALL, "trainer.precision=bf16-mixed", "+matmul_precision=medium")
    assert "Using bfloat16 Automatic Mixed Precision" in text and "Best model stored" in text


NO_STEP = ["globals.lr=1e-12", "trainer.max_epochs=1", "callbacks.ema.decay=0.0"]


def test_fine_tuning_starts_where_the_base_is(base, workspace):
    """Offsets and split are the base's: with a learning rate of nothing the test gives the base's figures, digit by digit."""
    options = [f"model.path={base / 'best_model'}", *NO_STEP]
    folder, text = train(workspace, "tuned", "efa_finetuning", *options, f"data.split_file={base / 'split.npz'}")
    assert final_errors(folder) == final_errors(base) and final_errors(base)
    assert "structures of the test set were in the base's training set" not in text
    model, before = load(folder / "best_model"), load(base / "best_model")
    assert has_efa(model) and efa_config(model).normalization == 9.0
    assert torch.equal(model.postprocessors[1].mean, before.postprocessors[1].mean)
    # another split: the mean of other structures, and structures in the test set that the base has seen
    folder, text = train(workspace, "other", "efa_finetuning", *options, "seed=7")
    assert "structures of the test set were in the base's training set" in text and "data.split_file=" in text
    assert torch.equal(load(folder / "best_model").postprocessors[1].mean, before.postprocessors[1].mean)


def test_fine_tuning_a_model_with_efa_and_freezing_its_base(fresh, workspace):
    options = [f"model.path={fresh / 'best_model'}", "model.efa=null", f"data.split_file={fresh / 'split.npz'}"]
    folder, _ = train(workspace, "same", "efa_finetuning", *options, *NO_STEP)
    assert final_errors(folder) == final_errors(fresh)
    folder, _ = train(workspace, "frozen", "efa_finetuning", *options, "model.freeze_base=true", "globals.lr=1e-2")
    before, after = (parameters(f / "best_model") for f in (fresh, folder))
    new = set(efa_parameters(load(folder / "best_model")))
    assert all(torch.equal(before[name], after[name]) for name in before if name not in new)
    assert any(not torch.equal(before[name], after[name]) for name in new)
    _, text = train(workspace, "refused", "efa_finetuning", options[0], "model.efa.max_length=3.5", check=False)
    assert "has EFA with other settings" in text and "max_length: 3.5" in text


CALCULATE = """
import json, ase.io, torch
from schnetpack.interfaces import SpkCalculator, SpkEnsembleCalculator
from schnetpack.transform import ASENeighborList
atoms = ase.io.read("train.xyz", index=0)
options = {{"neighbor_list": ASENeighborList(2.0), "energy_unit": "eV", "position_unit": "Ang", "dtype": torch.{dtype}}}
atoms.calc = SpkCalculator({path!r}, **options)
one = [atoms.get_potential_energy(), atoms.get_forces().tolist()]
atoms.calc = SpkEnsembleCalculator([{path!r}, {path!r}], **options)
several = [atoms.get_potential_energy(), atoms.get_forces().tolist()]
print(json.dumps([one, several]))
"""


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_calculator_and_ensemble_in_a_fresh_process(fresh, workspace, ethanol, dtype):
    code = CALCULATE.format(path=str(fresh / "best_model"), dtype=dtype)
    one, several = json.loads(fresh_process(code, workspace).splitlines()[-1])
    model = load(fresh / "best_model").to(getattr(torch, dtype)).eval()
    expected = model(batch_of(model, [ethanol]))
    for energy, forces in (one, several):
        assert np.ravel(energy).item() == pytest.approx(expected["energy"].item(), abs=1e-5)
        assert np.allclose(forces, expected["forces"].detach().numpy(), rtol=0, atol=1e-5)


def test_deployed_model(fresh, workspace, ethanol):
    """As pair_schnetpack calls it: eight tensors, `_cell` (3, 3), all in single precision; and with `_pbc` as others may."""
    run("spkdeploy", str(fresh / "best_model"), str(workspace / "deployed"), cwd=workspace)
    metadata = {"cutoff": ""}
    deployed = torch.jit.load(workspace / "deployed", _extra_files=metadata)
    assert float(metadata["cutoff"]) == 2.0
    model = load(fresh / "best_model").eval()
    expected = model(batch_of(model, [ethanol]))
    keys = ("_positions", "_idx_i", "_idx_j", "_idx_m", "_offsets", "_n_atoms", "_atomic_numbers")

    def inputs() -> dict[str, torch.Tensor]:
        batch = batch_of(model, [ethanol])
        return {**{key: batch[key] for key in keys}, "_cell": torch.zeros(3, 3)}

    for given in (inputs(), {**inputs(), "_pbc": torch.zeros(3, dtype=torch.bool)}):
        out = deployed(given)
        assert out["energy"].item() == pytest.approx(expected["energy"].item(), abs=1e-4)
        assert torch.allclose(out["forces"], expected["forces"].float(), rtol=0, atol=1e-5)
    image = inputs()
    image["_offsets"][0, 0] = 8.0
    for refused in (image, {**inputs(), "_pbc": torch.tensor([True, False, False])}):
        with pytest.raises(torch.jit.Error, match="periodic"):
            deployed(refused)


def test_command_line(base, fresh, workspace, capsys):
    from efa_addons.cli import main

    stock, inserted, stripped = base / "best_model", workspace / "inserted", workspace / "stripped"
    assert main(["insert", "--host", "painn", str(stock), str(inserted), "--max_length", "9"]) == 0
    assert "EFA in 2 of 2 layers" in capsys.readouterr().out
    assert main(["inspect", "--host", "painn", str(inserted), "--data", str(workspace / "train.xyz")]) == 0
    assert "untrained" in capsys.readouterr().out
    assert main(["strip", "--host", "painn", str(inserted), str(stripped)]) == 0
    assert describe(load(stripped)) == "no EFA"
    assert main(["convert", "--host", "painn", str(stock), str(workspace / "portable.efa")]) == 2
    assert "no portable format for painn" in capsys.readouterr().err
    assert main(["inspect", "--host", "painn", str(fresh / "best_model.task")]) == 2
    assert metrics(fresh)


def test_the_configurations_come_with_the_package_wherever_one_is(workspace, tmp_path):
    """`model/representation=painn_efa` and `model=efa_finetune` need no --config-dir."""
    text = run(
        "spktrain", "experiment=md17", "model/representation=painn_efa", "data.molecule=ethanol", "--cfg", "job", cwd=tmp_path
    )
    assert "_target_: efa_addons.hosts.painn.PaiNNEFA" in text and "n_interactions: 3" in text
    text = run(
        "spktrain",
        "experiment=md17",
        "model=efa_finetune",
        "model.path=x",
        "data.molecule=ethanol",
        "--cfg",
        "job",
        cwd=tmp_path,
    )
    assert "_target_: efa_addons.hosts.painn.InsertEFA" in text


@kernels
@pytest.mark.parametrize("taken", ["auto", "triton"])
def test_training_on_a_gpu(taken, workspace, ethanol, monkeypatch):
    """Or by interpreted kernels (TRITON_INTERPRET=1): what it trained is the same function by torch on the CPU."""
    monkeypatch.setenv("EFA_ADDONS_BACKEND", taken)
    efa = {"method": "quadrature", "num_features_qk": 4, "num_features_v": 4, "max_length": 6.0}
    flags = [f"++model.representation.efa.{name}={value}" for name, value in efa.items()]
    flags += [f"trainer.accelerator={KERNELS_RUN_ON}", "trainer.devices=1"]
    folder, _ = train(workspace, f"by_{taken}", "efa_tutorial", *SMALL, *flags)
    assert all(np.isfinite(float(value)) for value in final_errors(folder).values())
    model = torch.load(folder / "best_model", weights_only=False, map_location="cpu").eval()
    last = [p for name, p in efa_parameters(model).items() if name.endswith(("mlp.2.weight", "out.weight"))]
    assert last and all(p.abs().max() > 0 for p in last)
    energies = []
    for name, device in (("chunked", "cpu"), (taken, KERNELS_RUN_ON)):
        there = model.to(device)
        with backend(name):
            energies.append(there(batch_of(there, [ethanol]))["energy"].item())
    assert energies[1] == pytest.approx(energies[0], rel=1e-5)
