"""Inserting EFA into a trained MACE changes nothing; what it adds then is right in forces, stress, symmetry and batching."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest
import torch
from ase.build import molecule
from mace_support import batch_of, evaluate, randomize, rotation

from efa_addons import EFAConfig, EFAError, EFAWarning
from efa_addons.hosts.mace import describe, efa_config, has_efa, insert_efa, inspect, strip_efa, without_efa
from efa_addons.hosts.mace.insert import graft_from

CONFIG = EFAConfig(max_length=8.0, num_features_qk=4, num_features_v=4, mlp_features=8)


@pytest.fixture(scope="module")
def model(stock_model):
    """MACE with EFA blocks of random weights."""
    return randomize(insert_efa(stock_model, CONFIG, seed=1))


def energy(model, atoms) -> float:
    return evaluate(model, atoms, compute_force=False)["energy"].item()


@pytest.mark.parametrize("layers", [None, [0], [1]])
@pytest.mark.parametrize(
    "options", [{}, {"tensor_integration": True, "ti_max_degree_sph": 1, "ti_max_degree": 1}, {"emulate": True}]
)
def test_insertion_changes_nothing(stock_model, ethanol, layers, options):
    inserted = insert_efa(stock_model, CONFIG.replace(layers=layers, **options))
    before, after = (evaluate(m, ethanol, compute_stress=True, compute_virials=True) for m in (stock_model, inserted))
    for quantity in ("energy", "forces", "stress", "virials", "node_energy"):
        assert torch.equal(before[quantity], after[quantity]), quantity
    assert has_efa(inserted) and not has_efa(stock_model)


def test_insertion_leaves_the_random_numbers_alone(stock_model):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    insert_efa(stock_model, CONFIG)
    assert torch.equal(torch.rand(1), expected)


def test_strip_gives_the_stock_model_back(stock_model, model, ethanol):
    stripped = strip_efa(model)
    assert type(stripped) is type(stock_model) and not has_efa(stripped)
    assert energy(stripped, ethanol) == energy(stock_model, ethanol) != energy(model, ethanol)
    assert has_efa(model)


def test_graft_carries_the_weights_over(stock_model, model, ethanol):
    assert energy(graft_from(copy.deepcopy(stock_model), model), ethanol) == energy(model, ethanol)


def test_forces_are_the_gradient_of_the_energy(model, ethanol):
    forces = evaluate(model, ethanol)["forces"].detach().numpy()
    for atom, axis in ((0, 0), (3, 1), (8, 2)):
        sides = []
        for sign in (1, -1):
            moved = ethanol.copy()
            moved.positions[atom, axis] += sign * 1e-4
            sides.append(energy(model, moved))
        assert forces[atom, axis] == pytest.approx(-(sides[0] - sides[1]) / 2e-4, rel=1e-5, abs=1e-6)


def test_virials_contain_the_part_of_efa(model, ethanol):
    """dE/dstrain by finite differences: with the unstrained positions EFA's part would be missing."""
    virials = evaluate(model, ethanol, compute_virials=True)["virials"][0].detach().numpy()
    for a, b in ((0, 0), (1, 2)):
        sides = []
        for size in (1e-4, -1e-4):
            strain = np.zeros((3, 3))
            strain[a, b] += size / 2
            strain[b, a] += size / 2
            strained = ethanol.copy()
            strained.positions = ethanol.positions @ (np.eye(3) + strain)
            sides.append(energy(model, strained))
        assert virials[a, b] == pytest.approx(-(sides[0] - sides[1]) / 2e-4, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("improper", [False, True])
def test_rotation(model, ethanol, improper):
    matrix, turned = rotation(4, improper), ethanol.copy()
    turned.positions = ethanol.positions @ matrix.T
    before, after = evaluate(model, ethanol), evaluate(model, turned)
    assert after["energy"].item() == pytest.approx(before["energy"].item(), rel=1e-6)
    expected = before["forces"] @ torch.as_tensor(matrix.T)
    assert torch.allclose(after["forces"], expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_order_of_atoms_and_batching(model, ethanol):
    order = np.random.default_rng(0).permutation(len(ethanol))
    water = molecule("H2O")
    together = evaluate(model, ethanol[order], water, ethanol)
    single = evaluate(model, ethanol)
    assert torch.allclose(together["energy"][[0, 2]], single["energy"].expand(2), rtol=0, atol=1e-10)
    assert together["energy"][1].item() == pytest.approx(energy(model, water), abs=1e-10)
    assert torch.allclose(together["forces"][: len(ethanol)], single["forces"][order], rtol=0, atol=1e-9)


def test_efa_sees_beyond_the_cutoff(stock_model, model):
    """Two waters farther apart than two layers reach: only EFA's energy depends on their distance."""

    def apart(distance):
        pair = molecule("H2O")
        other = molecule("H2O")
        other.positions += [0, 0, distance]
        return pair + other

    assert energy(stock_model, apart(5.5)) == pytest.approx(energy(stock_model, apart(6.5)), abs=1e-12)
    assert abs(energy(model, apart(5.5)) - energy(model, apart(6.5))) > 1e-4


def test_periodic_structures_are_refused_by_their_pbc_flag(model, ethanol):
    ethanol.set_cell([20.0, 20.0, 20.0])
    boxed = energy(model, ethanol)
    assert boxed == pytest.approx(energy(model, ethanol), abs=1e-12)
    ethanol.set_pbc([False, True, False])
    with pytest.raises(EFAError, match="periodic"):
        evaluate(model, ethanol)


def test_a_structure_beyond_max_length_warns_once(stock_model):
    model = insert_efa(stock_model, CONFIG.replace(max_length=3.0, layers=[0]))
    with pytest.warns(EFAWarning, match="rotational invariance is no longer promised") as caught:
        for _ in range(3):
            evaluate(model, molecule("CH3CH2OH"))
    assert len([w for w in caught if w.category is EFAWarning]) == 1


def test_config_travels_with_the_model(model):
    assert efa_config(model) == CONFIG
    assert "2 of 2 layers" in describe(model) and "50 Lebedev points" in describe(model)


def test_errors_name_what_was_given(stock_model, model):
    with pytest.raises(EFAError, match="has EFA already"):
        insert_efa(model, CONFIG)
    with pytest.raises(EFAError, match=r"layers \[2\] do not exist: the model has the layers 0 to 1"):
        insert_efa(stock_model, CONFIG.replace(layers=[0, 2]))
    with pytest.raises(EFAError, match="got Linear"):
        insert_efa(torch.nn.Linear(1, 1), CONFIG)
    with pytest.raises(EFAError, match="max_length=auto"):
        insert_efa(stock_model, EFAConfig())
    with pytest.raises(EFAError, match="no EFA to take out"):
        strip_efa(stock_model)


def test_the_block_is_added_beside_the_local_layer(stock_model, ethanol):
    """x' = local(x) + EFA(x), with x the features before the interaction."""
    model = randomize(insert_efa(stock_model, CONFIG.replace(layers=[1])))
    data = batch_of(model, ethanol)
    plain, added = (m(data, compute_force=False)["node_feats"] for m in (stock_model, model))
    first = stock_model.products[0].linear.irreps_out.dim
    residual = model.products[1].efa(plain[:, :first], data, 1)
    assert torch.equal(added[:, :first], plain[:, :first])
    assert residual.abs().max() > 1e-3
    assert torch.allclose(added[:, first:], plain[:, first:] + residual, rtol=0, atol=1e-12)


def test_switching_efa_off_for_a_while(stock_model, model, ethanol):
    with without_efa(model):
        assert energy(model, ethanol) == energy(stock_model, ethanol)
    assert energy(model, ethanol) != energy(stock_model, ethanol)
    with pytest.raises(EFAError, match="no EFA to switch off"), without_efa(stock_model):
        pass


def test_inspect(stock_model, model, ethanol):
    first = inspect(stock_model).splitlines()[0]
    assert first.endswith("2 layers, r_max 2 Å, float64, heads ['Default'], elements H, C, O")
    text = inspect(insert_efa(stock_model, CONFIG.replace(layers=[1])))
    assert "layer 0: no EFA" in text and "untrained" in text and "max_length: 8.0" in text
    assert "layer 1: 4x0e+4x1o -> 4x0e" in inspect(model) and "untrained" not in inspect(model)


def test_inspect_measures_what_the_blocks_put_out(model, ethanol):
    data = batch_of(model, ethanol)
    first = model.products[0].efa(model.node_embedding(data["node_attrs"]), data, 1).norm(dim=1).mean().item()
    line = next(line for line in inspect(model, [ethanol]).splitlines() if line.startswith("layer 0"))
    assert f"norm of EFA's output {first:.3g} beside" in line
    assert f"{first:.3g} beside" not in inspect(model)  # without structures, on others


def test_the_memory_of_a_training_step_is_in_the_line(model):
    assert "MiB" not in describe(model)
    sizes = [float(re.search(r"([0-9.]+) MiB in a training step of 4 x", describe(model, n, 4)).group(1)) for n in (8, 16)]
    assert 1.3 < sizes[1] / sizes[0] < 4
