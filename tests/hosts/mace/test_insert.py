"""EFA in a trained MACE: what is MACE's own, beside the contract of all hosts (tests/contract)."""

from __future__ import annotations

import re
from copy import deepcopy

import pytest
import torch
from mace_support import batch_of, evaluate, randomize

from efa_addons import EFAConfig, EFAError
from efa_addons.hosts.mace import describe, insert_efa, inspect, strip_efa
from efa_addons.hosts.mace.insert import graft_from

CONFIG = EFAConfig(max_length=8.0, num_features_qk=4, num_features_v=4, mlp_features=8)


@pytest.fixture(scope="module")
def model(stock_model):
    """MACE with EFA blocks of random weights."""
    return randomize(insert_efa(stock_model, CONFIG, seed=1))


def energy(model, atoms) -> float:
    return evaluate(model, atoms, compute_force=False)["energy"].item()


@pytest.mark.parametrize("layers", [[0], [1]])
@pytest.mark.parametrize(
    "options", [{}, {"tensor_integration": True, "ti_max_degree_sph": 1, "ti_max_degree": 1}, {"emulate": True}]
)
def test_insertion_into_one_layer_changes_nothing(stock_model, ethanol, layers, options):
    """The first takes scalars and the last gives scalars; all that MACE computes."""
    inserted = insert_efa(stock_model, CONFIG.replace(layers=layers, **options))
    before, after = (evaluate(m, ethanol, compute_stress=True, compute_virials=True) for m in (stock_model, inserted))
    for quantity in ("energy", "forces", "stress", "virials", "node_energy"):
        assert torch.equal(before[quantity], after[quantity]), quantity


def test_strip_gives_the_stock_class_back(stock_model, model):
    assert type(strip_efa(model)) is type(stock_model)


def test_graft_carries_the_weights_over(stock_model, model, ethanol):
    assert energy(graft_from(deepcopy(stock_model), model), ethanol) == energy(model, ethanol) != energy(stock_model, ethanol)


def test_one_periodic_direction_is_refused_also_in_a_large_cell(model, ethanol):
    """By the flag: no edge leads to an image."""
    ethanol.set_cell([20.0, 20.0, 20.0])
    ethanol.set_pbc([False, True, False])
    with pytest.raises(EFAError, match="periodic"):
        evaluate(model, ethanol)


def test_lengths_that_wait_for_data_are_refused(stock_model):
    with pytest.raises(EFAError, match="max_length=auto"):
        insert_efa(stock_model, EFAConfig())


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


def test_inspect(stock_model, model):
    first = inspect(stock_model).splitlines()[0]
    assert first.endswith("2 layers, r_max 2 Å, float64, heads ['Default'], elements H, C, O")
    assert "layer 1: 4x0e+4x1o -> 4x0e" in inspect(model)
    assert "50 Lebedev points" in describe(model)


def test_inspect_measures_what_the_blocks_put_out(model, ethanol):
    data = batch_of(model, ethanol)
    first = model.products[0].efa(model.node_embedding(data["node_attrs"]), data, 1).norm(dim=1).mean().item()
    line = next(line for line in inspect(model, [ethanol]).splitlines() if line.startswith("layer 0"))
    assert f"norm of EFA's output {first:.3g} beside" in line
    assert f"{first:.3g} beside" not in inspect(model)  # without structures, on others


def test_the_memory_of_a_training_step_is_in_the_line(model):
    sizes = [float(re.search(r"([0-9.]+) MiB in a training step of 4 x", describe(model, n, 4)).group(1)) for n in (8, 16)]
    assert 1.3 < sizes[1] / sizes[0] < 4
