"""nequip-train, nequip-package and the calculator, as their users run them, in processes of their own."""

from __future__ import annotations

import importlib
import json
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import ase.io
import pytest
import torch
import yaml
from host_support import ROOT, run
from nequip.integrations.ase import NequIPCalculator
from nequip_programs import SMALL, saved, train, without_efa
from nequip_support import batch_of, evaluate

from efa_addons import EFAError
from efa_addons.cli import main
from efa_addons.hosts.nequip import NequIPEFACalculator, efa_config, efa_parameters, has_efa


@pytest.fixture(scope="module")
def fresh(workspace) -> Path:
    csv = (
        "+trainer.logger={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: " + str(workspace / "logs") + ", version: 0}"
    )
    return train(workspace, "fresh", "tutorial", *SMALL, csv, "trainer.log_every_n_steps=1")[0]


@pytest.fixture(scope="module")
def package(fresh, workspace) -> Path:
    path = workspace / "efa.nequip.zip"
    run("nequip-package", "build", str(fresh / "best.ckpt"), str(path), cwd=workspace)
    return path


def test_the_tutorial_trains_efa(fresh, workspace):
    model = saved(fresh / "best.ckpt")
    config = efa_config(model)
    structures = ase.io.read(workspace / "train.xyz", ":")
    largest = max(atoms.get_all_distances().max() for atoms in structures)
    assert 1.1 * largest < config.max_length <= 1.2 * largest + 1e-6 and config.normalization == 9.0
    last = [p for name, p in efa_parameters(model).items() if name.endswith(("mlp.2.weight", "out.weight"))]
    assert len(last) == 4 and all(p.abs().max() > 0 for p in last)
    # what is loaded is the moving average
    raw = torch.load(fresh / "best.ckpt", weights_only=False)["state_dict"]
    assert all(not torch.equal(p, raw[f"model.sole_model.{name}"]) for name, p in efa_parameters(model).items())


def test_contributions_are_logged(fresh, workspace):
    metrics = next((workspace / "logs").rglob("metrics.csv")).read_text()
    assert "efa_contribution/layer0" in metrics and "efa_contribution/layer1" in metrics


def test_unknown_keys_are_errors(workspace):
    _, text = train(workspace, "typo", "tutorial", *SMALL, "+training_module.model.efa.max_lenght=3", check=False)
    assert "unknown EFA option 'max_lenght' (did you mean 'max_length'" in text


def test_restart(fresh, workspace):
    again, _ = train(workspace, "again", "tutorial", *SMALL, f"++ckpt_path={fresh / 'last.ckpt'}", "trainer.max_epochs=3")
    before, after = (torch.load(f / "last.ckpt", weights_only=False) for f in (fresh, again))
    assert (before["epoch"], after["epoch"]) == (1, 2)
    assert any("efa" in name for name in after["state_dict"])
    assert set(before["state_dict"]) == set(after["state_dict"])


def metric(text: str, name: str) -> float:
    line = next(line for line in text.splitlines() if f" {name} " in line)
    return float(line.split("│")[2])


def test_fine_tuning_a_package_starts_where_the_base_is(workspace):
    options = [*SMALL, "cutoff_radius=3.5", "run=[train]"]  # fine-tuning takes the cutoff of the package
    folder, _ = train(workspace, "base", "tutorial", *options, "training_module.model.efa=false")
    assert not has_efa(saved(folder / "best.ckpt"))
    base, again = workspace / "base.nequip.zip", workspace / "again.nequip.zip"
    run("nequip-package", "build", str(folder / "best.ckpt"), str(base), cwd=workspace)
    tuned, text = train(workspace, "tuned", "finetune", f"package={base}", "run=[val,train]")
    stock = without_efa("finetune", workspace)
    _, expected = train(workspace, "untuned", stock, f"package={base}", "run=[val]", configs=workspace)
    for name in ("val0_epoch/forces_mae", "val0_epoch/total_energy_mae"):
        assert metric(text, name) == metric(expected, name)
    model = saved(tuned / "best.ckpt")
    assert has_efa(model) and efa_config(model).normalization == 9.0
    # and a package of a model that was made from a package
    run("nequip-package", "build", str(tuned / "best.ckpt"), str(again), cwd=workspace)
    atoms = ase.io.read(workspace / "train.xyz", index=0)
    energies = [evaluate(m, atoms, r_max=3.5)["total_energy"] for m in (model, saved(again))]
    assert torch.allclose(*energies, rtol=0, atol=1e-5)
    # in which EFA adds no module of NequIP: one that a base of another version lacks would be the installed one
    names = [{name.partition("/")[2] for name in zipfile.ZipFile(path).namelist()} for path in (base, again)]
    theirs, ours = ({name for name in each if name.startswith("nequip/")} for each in names)
    assert ours == theirs and "nequip/nn/utils.py" in ours
    # which has EFA, and keeps it
    tune = [f"package={again}", "run=[val]"]
    _, text = train(workspace, "kept", "finetune", *tune, "training_module.model.efa=null")
    _, text_again = train(workspace, "as_it_is", stock, *tune, configs=workspace)
    assert metric(text, "val0_epoch/forces_mae") == metric(text_again, "val0_epoch/forces_mae")
    _, text = train(workspace, "refused", "finetune", *tune, "+training_module.model.efa.num_features_qk=8", check=False)
    assert "has EFA with other settings: num_features_qk: 8 (the model has 16)" in text.replace("\n", " ")


WITHOUT_EFA_ADDONS = """
import importlib.abc, importlib.metadata, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "efa_addons":
            raise ImportError(name)

entry_points = importlib.metadata.entry_points
importlib.metadata.entry_points = lambda **k: [] if k.get("group") == "nequip.extension" else entry_points(**k)
sys.meta_path.insert(0, Blocked())
import ase.io
from nequip.integrations.ase import NequIPCalculator
atoms = ase.io.read("train.xyz", index=0)
atoms.calc = NequIPCalculator._from_saved_model({package!r}, device="cpu", chemical_species_to_atom_type_map=True)
print(json.dumps([atoms.get_potential_energy(), atoms.get_forces().tolist()]))
"""


def test_a_package_needs_no_efa_addons(fresh, package, workspace, ethanol):
    code = WITHOUT_EFA_ADDONS.format(package=str(package))
    energy, forces = json.loads(run("python", "-c", code, cwd=workspace).strip().splitlines()[-1])
    expected = evaluate(saved(fresh / "best.ckpt"), ethanol, r_max=4.0)
    assert energy == pytest.approx(expected["total_energy"].item(), abs=1e-5)
    assert torch.allclose(torch.tensor(forces, dtype=torch.float64), expected["forces"].double(), rtol=0, atol=1e-4)


def test_calculators(fresh, package, ethanol):
    """NequIP's serves a molecule; ours refuses what a compiled model could not, and has no stress where there is no volume."""
    expected = evaluate(saved(fresh / "best.ckpt"), ethanol, r_max=4.0)["total_energy"].item()
    for calculator in (NequIPCalculator, NequIPEFACalculator):
        ethanol.calc = calculator._from_saved_model(str(package), device="cpu", chemical_species_to_atom_type_map=True)
        assert ethanol.get_potential_energy() == pytest.approx(expected, abs=1e-5)
    assert "stress" not in ethanol.calc.results
    ethanol.set_cell([9.0, 9.0, 9.0])
    ethanol.pbc = True
    with pytest.raises(EFAError, match="periodic"):
        ethanol.get_potential_energy()


def test_preparing_for_mliap_is_refused(fresh, package, workspace, monkeypatch):
    """nequip-prepare-lmp-mliap, with LAMMPS' Python package played by an empty class; NequIP's own models pass."""
    for name in ("lammps", "lammps.mliap", "lammps.mliap.mliap_unified_abc"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lammps.mliap.mliap_unified_abc"].MLIAPUnified = type("MLIAPUnified", (), {})
    program = importlib.import_module("nequip.integrations.lammps_mliap.create_lmp_mliap_file")
    out = workspace / "refused.nequip.lmp.pt"
    for model in (fresh / "best.ckpt", package):
        with pytest.raises(ValueError, match="ML-IAP interface passes edge vectors only: compile"):
            program.main([str(model), str(out)])
    assert not out.exists()


def test_shipped_configurations_have_all_sections():
    for path in (ROOT / "configs" / "nequip").glob("*.yaml"):
        assert {"run", "data", "trainer", "training_module", "global_options"} <= set(yaml.safe_load(path.read_text()))


def test_periodic_training_data_are_refused(workspace):
    atoms = ase.io.read(workspace / "train.xyz", ":")
    for a in atoms:
        a.set_cell([20.0, 20.0, 20.0])
        a.pbc = True
    ase.io.write(workspace / "periodic.xyz", atoms)
    _, text = train(workspace, "periodic", "tutorial", *SMALL, f"data_file={workspace / 'periodic.xyz'}", check=False)
    assert "EFA got a periodic structure" in text
    assert batch_of(atoms[0])  # NequIP itself would take it


def test_inspecting_checkpoints_and_packages(fresh, package, workspace, capsys):
    """From the command line; what NequIP's own programs write is not written by it."""
    for path in (fresh / "best.ckpt", package):
        assert main(["inspect", "--host", "nequip", str(path), "--data", str(workspace / "train.xyz")]) == 0
        text = capsys.readouterr().out
        assert "NequIP (read by nequip" in text and "EFA in 2 of 2 layers" in text and "layer 1: " in text
    assert main(["strip", "--host", "nequip", str(package), str(workspace / "stripped.nequip.zip")]) == 2
    assert "is not written: NequIP's files come from its own programs" in capsys.readouterr().err
    assert main(["inspect", "--host", "nequip", str(workspace / "train.xyz")]) == 2
    assert "neither a checkpoint" in capsys.readouterr().err
