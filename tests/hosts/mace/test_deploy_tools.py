"""MACE's tools on models with EFA: committees, evaluation, molecular dynamics, descriptors, Hessians, torch.compile, LAMMPS."""

from __future__ import annotations

import ase.io
import numpy as np
import pytest
import torch
from mace.calculators import MACECalculator
from mace_support import SMALL, batch_of, evaluate, randomize

from efa_addons import EFAConfig, EFAError
from efa_addons.hosts.mace import has_efa, insert_efa, load, save, without_efa


@pytest.fixture(scope="module")
def committee(stock_model, tmp_path_factory):
    """A folder with two models that differ in their EFA alone, float64."""
    folder = tmp_path_factory.mktemp("committee")
    inserted = insert_efa(stock_model, EFAConfig(max_length=8.0, num_features_qk=4, num_features_v=4, mlp_features=8))
    for seed in (0, 1):
        save(randomize(inserted, seed=seed), folder / f"member_{seed}.model")
    return folder


@pytest.fixture
def command(monkeypatch):
    """command(module, *arguments): a console script of MACE in this process; the default dtype it sets is set back."""

    def run(module, *arguments: object) -> None:
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
        dtype = torch.get_default_dtype()
        try:
            module.main()
        finally:
            torch.set_default_dtype(dtype)

    return run


def calculator(path, **options) -> MACECalculator:
    return MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64", **options)


def test_committee(committee, ethanol):
    calc = calculator(committee / "member_*.model")
    members = [evaluate(load(path), ethanol) for path in sorted(committee.glob("member_*.model"))]
    energies = [member["energy"].item() for member in members]
    forces = np.stack([member["forces"].detach().numpy() for member in members])
    ethanol.calc = calc
    assert abs(energies[0] - energies[1]) > 1e-3
    assert ethanol.get_potential_energy() == pytest.approx(np.mean(energies), abs=1e-10)
    assert calc.results["energy_var"] == pytest.approx(np.var(energies), abs=1e-10)
    assert np.allclose(ethanol.get_forces(), forces.mean(axis=0), rtol=0, atol=1e-10)
    assert np.allclose(calc.results["forces_var"], forces.var(axis=0), rtol=0, atol=1e-10)


def test_descriptors_contain_efa(committee, ethanol):
    model = load(committee / "member_0.model")
    calc = calculator(committee / "member_0.model")
    features = evaluate(model, ethanol)["node_feats"].detach().numpy()
    assert np.allclose(calc.get_descriptors(ethanol, invariants_only=False), features, rtol=0, atol=1e-12)
    with_efa = calc.get_descriptors(ethanol)
    with without_efa(calc.models[0]):
        assert not np.allclose(calc.get_descriptors(ethanol), with_efa, rtol=0, atol=1e-3)


def test_hessian_is_the_derivative_of_the_forces(committee, ethanol):
    size, step = 3 * len(ethanol), 1e-4
    hessian = np.asarray(calculator(committee / "member_0.model").get_hessian(ethanol)).reshape(size, size)
    model = load(committee / "member_0.model")
    assert np.allclose(hessian, hessian.T, rtol=0, atol=1e-10)
    for coordinate in (0, 13):
        sides = []
        for sign in (1, -1):
            moved = ethanol.copy()
            moved.positions.reshape(-1)[coordinate] += sign * step
            sides.append(evaluate(model, moved)["forces"].detach().numpy().reshape(-1))
        assert np.allclose(hessian[coordinate], -(sides[0] - sides[1]) / (2 * step), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("suffix", [".model", "_compiled.model"])
def test_eval_configs(trained, workspace, tmp_path, command, suffix, dtype):
    """As in stock MACE the dtype is the model's own."""
    from mace.cli import eval_configs

    name = f"efa_{dtype}"
    folder = trained(name, "--efa", *SMALL, dtype=dtype)
    files = ("--configs", workspace / "train.xyz", "--output", tmp_path / "out.xyz", "--model", folder / f"{name}{suffix}")
    more = ("--compute_stress", "--return_node_energies") + (("--return_descriptors",) if suffix == ".model" else ())
    command(eval_configs, *files, "--default_dtype", dtype, "--batch_size", 5, *more)
    structures, model = ase.io.read(tmp_path / "out.xyz", ":"), load(folder / f"{name}.model")
    tolerance = 1e-10 if dtype == "float64" else 2e-5
    for atoms in (structures[0], structures[-1]):
        expected = evaluate(model, atoms)
        assert atoms.info["MACE_energy"] == pytest.approx(expected["energy"].item(), abs=tolerance)
        forces = expected["forces"].detach().numpy()
        assert np.allclose(atoms.arrays["MACE_forces"], forces, rtol=0, atol=max(tolerance, 1e-7))  # digits of the file


def test_convert_device(committee, ethanol, tmp_path, command):
    from mace.cli import convert_device

    path = committee / "member_0.model"
    command(convert_device, "--target_device", "cpu", "--output_file", tmp_path / "moved.model", path)
    expected, found = (evaluate(load(file), ethanol)["energy"] for file in (path, tmp_path / "moved.model"))
    assert torch.equal(found, expected)


def test_active_learning_molecular_dynamics(committee, workspace, tmp_path, command, capsys):
    from mace.cli import active_learning_md

    files = ("--config", workspace / "train.xyz", "--model", committee / "member_*.model", "--output", tmp_path / "md.xyz")
    length = ("--nsteps", 2, "--nsave", 1, "--ncheckerror", 1, "--timestep", 0.1)
    command(active_learning_md, *files, *length, "--device", "cpu", "--error_threshold", 1e9)
    assert len(ase.io.read(tmp_path / "md.xyz", ":")) == 3
    command(
        active_learning_md, *files[:4], "--output", tmp_path / "b.xyz", *length, "--device", "cpu", "--error_threshold", 1e-9
    )
    assert "Error too large" in capsys.readouterr().out


def test_torch_compile_as_mace_prepares_it(committee, ethanol):
    """MACECalculator(compile_mode=...) without its minutes of code generation: prepare, one graph, MACE's call."""
    from mace.tools import scripts_utils
    from mace.tools.compile import prepare

    model = load(committee / "member_0.model")
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        prepared = prepare(scripts_utils.extract_model)(model=model, map_location="cpu")
    finally:
        torch.set_default_dtype(dtype)
    assert has_efa(prepared)
    compiled = torch.compile(prepared, backend="eager", fullgraph=True)
    data = batch_of(model, ethanol)
    for key in ("positions", "node_attrs"):
        data[key].requires_grad_(True)
    found, expected = compiled(data, training=True, compute_stress=True), evaluate(model, ethanol, compute_stress=True)
    for quantity in ("energy", "forces", "stress"):
        assert torch.allclose(found[quantity], expected[quantity], rtol=0, atol=1e-12), quantity


def test_a_padded_batch_is_that_of_the_structure(committee, ethanol):
    """The calculator of a compiled model pads atoms and edges with a graph that is not there."""
    path = committee / "member_0.model"
    padded = calculator(path, pad_num_atoms=len(ethanol) + 3, pad_num_edges=256)
    expected = evaluate(load(path), ethanol)
    ethanol.calc = padded
    assert ethanol.get_potential_energy() == pytest.approx(expected["energy"].item(), abs=1e-10)
    assert np.allclose(ethanol.get_forces(), expected["forces"].detach().numpy(), rtol=0, atol=1e-10)


def test_compile_mode_of_the_calculator_keeps_efa(committee, monkeypatch):
    """What the calculator hands to torch.compile still has EFA."""
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: seen.append(model) or model)
    calculator(committee / "member_0.model", compile_mode="default")
    assert [has_efa(model) for model in seen] == [True]


def test_lammps_export_in_float32(committee, ethanol, tmp_path, command):
    from mace.cli import create_lammps_model

    path = tmp_path / "model.model"
    path.write_bytes((committee / "member_0.model").read_bytes())
    command(create_lammps_model, path, "--dtype", "float32")
    exported, model = torch.jit.load(f"{path}-lammps.pt"), load(path).float()
    data = batch_of(model, ethanol)
    data = {k: data[k] for k in ("positions", "node_attrs", "edge_index", "batch", "ptr", "cell", "shifts", "unit_shifts")}
    found = exported(data, torch.ones(len(ethanol)), False)
    assert found["forces"].dtype == torch.float32
    assert torch.allclose(found["forces"], evaluate(model, ethanol)["forces"], rtol=0, atol=2e-5)


def test_ml_iap_export_says_why_not(committee, tmp_path, command):
    from mace.cli import create_lammps_model

    with pytest.raises(EFAError, match="ML-IAP interface passes distances"):
        command(create_lammps_model, committee / "member_0.model", "--format", "mliap")
