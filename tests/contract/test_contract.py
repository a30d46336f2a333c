"""What every adapter keeps, whatever its host: the same assertions on MACE, NequIP and PaiNN."""

from __future__ import annotations

from copy import deepcopy
from importlib.util import find_spec
from itertools import permutations

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from case import CUTOFF, Output
from scipy.spatial.transform import Rotation
from torch import nn

from efa_addons import EFAConfig, EFAError, EFAWarning
from efa_addons.cli import main
from efa_addons.studies import kernels
from efa_addons.studies.hosts import PACKAGES

SMALL = EFAConfig(max_length=9.0, normalization=4.0, num_features_qk=4, num_features_v=4, mlp_features=8)
CONFIGS = {
    "default": SMALL,
    "all degrees": SMALL.replace(
        max_degree_qk=1, tensor_integration=True, ti_max_degree_sph=2, ti_max_degree=1, ti_parametrize_coupling_paths=True,
        activation="gelu", frequencies_trainable=True,
    ),
    "one layer": SMALL.replace(layers=[1], include_self=False, use_bias=False),
    "control": SMALL.replace(emulate=True),
}  # fmt: skip
ATTENDING = [name for name in CONFIGS if name != "control"]


def ethanol(seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def equal(first: Output, second: Output) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def close(first: Output, second: Output, tolerance: float) -> None:
    for name, a, b in zip(Output._fields, first, second, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=tolerance), f"{name}: {(a - b).abs().max():.1e} apart"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_insertion_changes_not_one_bit(host, config, dtype):
    stock = host.stock(dtype)
    inserted = host.adapter.insert_efa(stock, config, seed=1)
    structures = [ethanol(), molecule("H2O")]
    before = host.evaluate(stock, structures)
    assert equal(before, host.evaluate(inserted, structures))
    assert host.adapter.has_efa(inserted) and not host.adapter.has_efa(stock)
    assert host.adapter.efa_config(inserted) == config and host.adapter.efa_config(stock) is None
    after = host.evaluate(host.randomized(inserted), structures)
    assert not equal(before, after)  # it could have


def test_insertion_is_reproducible_and_leaves_the_generator_alone(host):
    stock = host.stock()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    blocks = [host.adapter.efa_parameters(host.adapter.insert_efa(stock, SMALL, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(1), expected)
    first, again, other = (torch.cat([p.flatten() for p in block.values()]) for block in blocks)
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_off_is_absent_and_strip_gives_the_host_back(host, config):
    stock, model = host.stock(), host.with_efa(config)
    expected, changed = host.evaluate(stock, [ethanol()]), host.evaluate(model, [ethanol()])
    assert not equal(expected, changed)
    with host.adapter.without_efa(model):
        assert equal(host.evaluate(model, [ethanol()]), expected)
    assert equal(host.evaluate(model, [ethanol()]), changed)
    stripped = host.adapter.strip_efa(model)
    assert equal(host.evaluate(stripped, [ethanol()]), expected)
    assert set(stripped.state_dict()) == set(stock.state_dict()) and not host.adapter.has_efa(stripped)
    assert host.adapter.has_efa(model)


def moved(atoms: Atoms, improper: bool) -> tuple[Atoms, torch.Tensor]:
    """Turned (and mirrored) about a far origin; and the matrix."""
    matrix = (-1 if improper else 1) * Rotation.random(random_state=1).as_matrix()
    turned = atoms.copy()
    turned.positions = atoms.positions @ matrix.T + [100.0, -50.0, 3.0]
    return turned, torch.as_tensor(matrix)


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "reflection"])
@pytest.mark.parametrize("name", ATTENDING)
def test_rotations_reflections_and_translations(host, name, improper):
    model = host.with_efa(CONFIGS[name])
    turned, matrix = moved(ethanol(), improper)
    before, after = host.evaluate(model, [ethanol()]), host.evaluate(model, [turned])
    expected = Output(before.energy, before.forces @ matrix.T, matrix @ before.by_strain @ matrix.T)
    close(after, expected, host.tolerance)


def test_a_grid_that_is_too_small_fails_the_test_of_rotations(host):
    with pytest.warns(EFAWarning, match="lebedev_num=6 points are wrong"):
        model = host.with_efa(SMALL.replace(lebedev_num=6, max_frequency=6.0))
    turned, _ = moved(ethanol(), False)
    energies = [host.evaluate(model, [atoms]).energy.item() for atoms in (ethanol(), turned)]
    assert abs(energies[0] - energies[1]) > 100 * host.tolerance


@pytest.mark.parametrize("name", ATTENDING)
def test_order_of_atoms_and_of_neighbors(host, name):
    model = host.with_efa(CONFIGS[name])
    expected = host.evaluate(model, [ethanol()])
    order = np.random.default_rng(0).permutation(len(ethanol()))
    found = host.evaluate(model, [ethanol()[order]])
    close(found, Output(expected.energy, expected.forces[order], expected.by_strain), host.tolerance)
    close(host.evaluate(model, [ethanol()], order=1), expected, host.tolerance)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("method", ["pairwise", "quadrature"])
def test_a_batch_is_its_structures(host, name, method):
    model = host.with_efa(CONFIGS[name].replace(method=method))
    structures = [ethanol(), molecule("H2O"), ethanol(1), molecule("CH4")]
    together = host.evaluate(model, structures)
    apart = [host.evaluate(model, [atoms]) for atoms in structures]
    expected = Output(*(torch.cat(values) for values in zip(*apart, strict=True)))
    close(together, expected, host.tolerance)


@pytest.mark.parametrize("name", ATTENDING)
def test_forces_and_stress_are_derivatives(host, name, step=1e-4):
    model = host.with_efa(CONFIGS[name])
    out = host.evaluate(model, [ethanol()])

    def slope(displace) -> float:
        energies = []
        for sign in (1, -1):
            atoms = ethanol()
            displace(atoms, sign * step)
            energies.append(host.evaluate(model, [atoms]).energy.item())
        return (energies[0] - energies[1]) / (2 * step)

    for atom, axis in ((0, 0), (4, 1), (8, 2)):

        def shift(atoms, size, atom=atom, axis=axis):
            atoms.positions[atom, axis] += size

        assert out.forces[atom, axis].item() == pytest.approx(-slope(shift), abs=2e-6)
    for i, j in ((0, 0), (0, 1), (2, 1)):

        def strain(atoms, size, i=i, j=j):
            matrix = np.eye(3)
            matrix[i, j] += size / 2
            matrix[j, i] += size / 2
            atoms.positions = atoms.positions @ matrix

        assert out.by_strain[0, i, j].item() == pytest.approx(slope(strain), abs=2e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_parameter_is_optimized_and_has_a_gradient(host, config):
    """Also for the sake of data-parallel training, which would wait for ever for a parameter without."""
    model = host.with_efa(config)
    new = host.adapter.efa_parameters(model)
    ids = [id(parameter) for parameter in host.optimized(model)]
    assert len(ids) == len(set(ids)) and all(id(parameter) in ids for parameter in new.values())
    out = host.evaluate(model, [ethanol(), molecule("H2O")], training=True)
    (out.energy.square().sum() + out.forces.square().sum()).backward()
    missing = [name for name, parameter in new.items() if parameter.grad is None]
    assert not missing
    assert any(parameter.grad.abs().max() > 0 for parameter in new.values())


def test_fine_tuning_saving_loading_and_stripping(host, tmp_path):
    """From a stock model and back, through the host's own files and its calculator in another process."""
    model = host.adapter.insert_efa(host.stock(), SMALL, seed=1)
    optimizer = torch.optim.Adam(host.optimized(model), lr=1e-2)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        out = host.evaluate(model, [ethanol(), molecule("H2O")], training=True)
        loss = out.energy.square().sum() + out.forces.square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    expected = host.evaluate(model, [ethanol()])
    path = tmp_path / f"tuned{host.suffix}"
    host.save(model, path)
    energy, forces = host.calculated(path, ethanol())
    assert energy == pytest.approx(expected.energy.item(), abs=1e-9)
    assert torch.allclose(forces, expected.forces.detach(), rtol=0, atol=1e-9)
    loaded = host.adapter.load(path)
    assert host.adapter.efa_config(loaded) == SMALL
    close(host.evaluate(loaded, [ethanol()]), expected, 1e-12)
    with host.adapter.without_efa(model):
        local = host.evaluate(model, [ethanol()])
    close(host.evaluate(host.adapter.strip_efa(loaded), [ethanol()]), local, 1e-12)


@pytest.mark.parametrize("name", ATTENDING)
def test_export_equals_eager(host, name):
    """Also for structures of other sizes than those it was made with. What cannot look at sizes takes the quadrature."""
    if name in host.too_slow_to_export:
        pytest.skip("tested with the host itself")
    model = host.with_efa(CONFIGS[name].replace(method="quadrature", tolerance=1e-8))
    exported = host.exported(model, [ethanol(), molecule("H2O"), molecule("CH3OH")])
    for structures in ([molecule("CH4"), ethanol(1)], [ethanol(), molecule("H2O"), molecule("CH3OH")]):
        close(exported(structures), host.evaluate(model, structures), host.tolerance)


def test_it_sees_beyond_the_cutoff(host):
    """Three layers reach 3 times the cutoff, and the waters are farther apart."""

    def energy(model: nn.Module, distance: float) -> float:
        pair = molecule("H2O")
        other = molecule("H2O")
        other.positions += [0, 0, distance]
        return host.evaluate(model, [pair + other]).energy.item()

    far = 3 * CUTOFF + 3.0
    config = SMALL.replace(max_length=15.0)
    stock, model = host.stock(), host.with_efa(config)
    assert energy(stock, far) == pytest.approx(energy(stock, far + 1), abs=1e-10)
    assert abs(energy(model, far) - energy(model, far + 1)) > 1e-5


def test_a_lonely_atom(host):
    """No NaN; without the self term and biases nothing is added to it."""
    atom = Atoms("O", [[1.0, 2.0, 3.0]])
    stock = host.evaluate(host.stock(), [atom])
    model = host.with_efa(SMALL.replace(include_self=False, use_bias=False))
    assert equal(host.evaluate(model, [atom]), stock)
    attended = host.evaluate(host.with_efa(SMALL), [atom, molecule("H2O")])
    assert all(torch.isfinite(values).all() for values in attended)
    assert attended.forces[0].abs().max() == 0 and attended.energy[0] != stock.energy[0]


def test_a_structure_beyond_max_length_is_a_warning(host):
    model = host.with_efa(SMALL.replace(max_length=2.0, method="quadrature", layers=[0]))
    with pytest.warns(EFAWarning, match="is .* Å wide, EFA was set up for max_length=2.00 Å") as caught:
        for _ in range(3):
            host.evaluate(model, [ethanol()])
    assert len([warning for warning in caught if warning.category is EFAWarning]) == 1


def test_periodic_structures_are_refused(host):
    boxed = ethanol()
    boxed.set_cell(4 * np.eye(3))  # small: there are edges to periodic images
    model = host.with_efa(SMALL)
    open_boundaries = host.evaluate(model, [boxed])
    assert open_boundaries.energy.item() == pytest.approx(host.evaluate(model, [ethanol()]).energy.item(), abs=1e-12)
    boxed.pbc = [True, True, True]
    with pytest.raises(EFAError, match="periodic"):
        host.evaluate(model, [boxed])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_model_keeps_its_dtype(host, dtype):
    default = torch.get_default_dtype()
    model = host.adapter.insert_efa(host.stock(dtype), SMALL)
    assert {p.dtype for p in host.adapter.efa_parameters(model).values()} == {dtype}
    assert torch.get_default_dtype() == default


def test_what_a_model_says_of_its_efa(host):
    model = host.with_efa(SMALL.replace(layers=[0, 2]))
    assert "EFA in 2 of 3 layers" in host.adapter.describe(model) and "MiB" not in host.adapter.describe(model)
    assert "MiB in a training step of 4 x 9 atoms" in host.adapter.describe(model, 9, 4)
    text = host.adapter.inspect(model)
    assert "layer 1: no EFA" in text and "max_length: 9.0" in text and "untrained" not in text
    assert text.count("norm of EFA's output") == 2
    assert "untrained" in host.adapter.inspect(host.adapter.insert_efa(host.stock(), SMALL), [ethanol()])
    assert "no EFA" in host.adapter.inspect(host.stock())


def test_what_it_attends_to(host, tmp_path):
    """Every layer, every degree; pairs are where the structures have them, so atoms are the model's in their order."""
    structures = [ethanol(), molecule("H2O")]
    for config, found in ((SMALL, 3), (CONFIGS["all degrees"], 9), (CONFIGS["one layer"], 1)):
        layers = kernels.effective_kernels(host.adapter, host.with_efa(config), structures)
        assert len(layers) == found and {layer.cutoff for layer in layers} == {CUTOFF}
        for layer in layers:
            for pair in layer.pairs:
                here, there = pair.split("←")
                distances = [
                    atoms.get_distance(i, j)
                    for atoms in structures
                    for i, j in permutations(range(len(atoms)), 2)
                    if (atoms[i].symbol, atoms[j].symbol) == (here, there)
                ]
                assert (layer.weights[pair].number == np.histogram(distances, layer.edges)[0]).all()
            seen = layer.weights["all"].number > 0
            assert np.isfinite(layer.weights["all"].mean[seen]).all() and (layer.weights["all"].mean[seen] != 0).any()
            assert np.isfinite(layer.couplings["all"].mean).all()
            assert bool(layer.own) == (config.include_self and layer.degree == 0)
    model, data, picture = tmp_path / f"it{host.suffix}", tmp_path / "data.xyz", tmp_path / "kernels.png"
    host.save(host.with_efa(SMALL), model)
    ase.io.write(data, structures)
    name = host.adapter.__name__.rpartition(".")[2]
    command = ["kernels", "--host", name, str(model), "--data", str(data), "--out", str(picture)]
    assert main(command) == 0
    assert main(command) == 2  # nothing is overwritten
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(picture.with_suffix(".csv").read_text().splitlines()) > 100


def test_what_does_not_attend_has_no_kernels(host):
    control = host.with_efa(CONFIGS["control"])
    for model, structures, message in (
        (host.stock(), [ethanol()], "no EFA to look at"),
        (control, [ethanol()], "emulated"),
        (host.with_efa(SMALL), [], "0 structures without a pair"),
        (host.with_efa(SMALL), [Atoms("O")], "1 structures without a pair"),
    ):
        with pytest.raises(EFAError, match=message):
            kernels.effective_kernels(host.adapter, model, structures)


def test_structures_of_other_elements_are_refused(host):
    structures = [ethanol(), molecule("SiH4")]
    if host.any_element:
        assert kernels.effective_kernels(host.adapter, host.with_efa(SMALL), structures)
        return
    with pytest.raises(EFAError, match="have Si, the model knows H, C, O"):
        kernels.effective_kernels(host.adapter, host.with_efa(SMALL), structures)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read (UnknownFileTypeError: Empty file"),
        ("no structure\n", "cannot be read (XYZError"),
        ("3\n\nH 0 0 0\n", "cannot be read (XYZError"),
        ("1\n\nQq 0 0 0\n", "cannot be read (KeyError: 'Qq')"),
        ("0\n\n", "has 1 of 1 structures without atoms"),
    ],
    ids=["empty", "no structure", "cut off", "no element", "no atoms"],
)
def test_data_that_cannot_be_read(host, tmp_path, capsys, content, message):
    """Told in one line by every verb that takes data, before it loads the model."""
    model, data, out = tmp_path / f"it{host.suffix}", tmp_path / "data.xyz", tmp_path / "out.png"
    model.touch()
    data.write_text(content)
    name = host.adapter.__name__.rpartition(".")[2]
    for verb, *given in (["inspect", model], ["kernels", model, "--out", out], ["insert", model, out]):
        assert main([verb, "--host", name, *map(str, given), "--data", str(data)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"efa-addons {verb}: {data} {message}")
        assert line.endswith("expected one or more structures in a format that ASE reads, extended XYZ for example.")


def test_periodic_data_are_refused_in_one_line(host, tmp_path, capsys):
    """By their flag alone, and before the model is loaded: a model that was packaged refuses with a class of its own."""
    model, data = tmp_path / f"it{host.suffix}", tmp_path / "data.xyz"
    model.touch()
    data.write_text('1\n\nH 0 0 0\n1\npbc="F T F"\nH 0 0 0\n')
    name = host.adapter.__name__.rpartition(".")[2]
    for verb, *given in (["inspect", model], ["kernels", model, "--out", tmp_path / "it.png"]):
        assert main([verb, "--host", name, *map(str, given), "--data", str(data)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"efa-addons {verb}: EFA got a periodic structure (structure 2 of {data})")


def test_input_that_cannot_be_used_is_told_in_one_line(host, tmp_path, capsys):
    name = host.adapter.__name__.rpartition(".")[2]
    damaged, folder, config = tmp_path / f"it{host.suffix}", tmp_path / f"folder{host.suffix}", tmp_path / "efa.yaml"
    damaged.write_bytes(b"PK\x03\x04 of a file that was cut off")
    folder.mkdir()
    config.write_text("efa: [")
    insert = ["insert", "--host", name, str(damaged), str(tmp_path / "out"), "--max_length", "9"]
    for given, message in (
        (insert, f"{damaged} "),
        (["inspect", "--host", name, str(folder)], f"{folder} cannot be read ("),
        (
            [*insert[:4], str(tmp_path / "nowhere" / "out")],
            f"{tmp_path / 'nowhere'} is no folder: make it before out is written",
        ),
        ([*insert, "--config", str(config)], f"{config} is no YAML file (while parsing"),
    ):
        assert main(given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"efa-addons {given[0]}: {message}")
    assert (
        main([*insert, "--max_degree", "1", "--max_lenght=9"]) == 2
    )  # argparse would take the first for --max_degree_qk or _v
    assert (
        "unknown option '--max_degree' (did you mean '--max_degree_qk' or '--max_degree_v'?), '--max_lenght' (did"
        in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        main([*insert, "--layers", "[0,"])  # a list without quotes in a shell
    assert "--layers: must be a value as in YAML, got [0, (in a shell lists need quotes)" in capsys.readouterr().err


def test_errors_say_what_was_given(host):
    stock, model = host.stock(), host.with_efa(SMALL)
    for refused, message in (
        (lambda: host.adapter.insert_efa(model, SMALL), "has EFA already; take it out first"),
        (lambda: host.adapter.insert_efa(stock, SMALL.replace(layers=[0, 3])), r"layers \[3\] do not exist.*0 to 2"),
        (lambda: host.adapter.insert_efa(nn.Linear(1, 1), SMALL), "Linear"),
        (lambda: host.adapter.strip_efa(stock), "no EFA to take out"),
        (lambda: host.adapter.without_efa(stock), "no EFA to switch off"),
    ):
        with pytest.raises(EFAError, match=message):
            refused()
    assert equal(host.evaluate(stock, [ethanol()]), host.evaluate(host.stock(), [ethanol()]))


def test_a_copy_is_a_model_of_its_own(host):
    model = deepcopy(host.with_efa(SMALL))
    expected = host.evaluate(model, [ethanol()])
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in host.adapter.efa_parameters(model).values():
            parameter.zero_()
    close(host.evaluate(copied, [ethanol()]), expected, 1e-12)


def test_a_host_that_is_missing_names_those_that_are_here(host, tmp_path, capsys):
    here = host.adapter.__name__.rpartition(".")[2]
    missing = next((name for name, package in PACKAGES.items() if find_spec(package) is None), None)
    if missing is None:
        pytest.skip("all hosts are here")
    (tmp_path / "it.model").touch()
    assert main(["inspect", "--host", missing, str(tmp_path / "it.model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "install the host with: pip install" in line and line.endswith(f", or say --host {here}, which is here")
