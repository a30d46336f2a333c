"""Models with EFA under NequIP's tracer, which records twice with other sizes and wants the same graph: before compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ase.build import molecule
from nequip.data import AtomicDataDict
from nequip.nn.compile import ListInputOutputStateDictWrapper
from nequip.utils.fx import nequip_make_fx
from nequip_support import batch_of, randomize, with_efa

OUTPUTS = [AtomicDataDict.TOTAL_ENERGY_KEY, AtomicDataDict.FORCE_KEY]
WATER, ETHANOL, METHANOL = (molecule(name) for name in ("H2O", "CH3CH2OH", "CH3OH"))


def frames(batched: bool) -> AtomicDataDict.Type:
    data = batch_of(WATER, ETHANOL, METHANOL) if batched else batch_of(METHANOL)
    keep = ["pos", "atom_types", "edge_index", "cell", "edge_cell_shift"] + (["batch", "num_atoms"] if batched else [])
    return {key: data[key] for key in keep if key in data}


def trace(model: torch.nn.Module, data: AtomicDataDict.Type) -> Callable[[AtomicDataDict.Type], AtomicDataDict.Type]:
    fields, weights = list(data), dict(model.model.named_parameters()) | dict(model.model.named_buffers())
    wrapped = ListInputOutputStateDictWrapper(model.model, fields, OUTPUTS, list(weights))
    traced = nequip_make_fx(wrapped, data, fields, list(weights.values()))

    def run(structures: AtomicDataDict.Type) -> AtomicDataDict.Type:
        found = traced(*[structures[key] for key in fields], *weights.values())
        return dict(zip(OUTPUTS, found, strict=True))

    return run


@pytest.mark.parametrize(
    ("batched", "efa"),
    [(True, {"include_self": False}), (False, {"tensor_integration": True})],
    ids=["batch", "one structure"],
)
def test_trace_equals_eager_also_for_other_sizes(batched, efa):
    model = randomize(with_efa({**efa, "max_length": 4.5, "tolerance": 1e-2}, num_layers=1))
    data = frames(batched)
    pairs = model(dict(data))
    traced = trace(model, data)
    other = batch_of(METHANOL, WATER) if batched else batch_of(ETHANOL)
    for structures in (data, {key: other[key] for key in data}):
        expected = model(dict(structures))
        for name, value in traced(structures).items():
            assert torch.allclose(value, expected[name], rtol=0, atol=1e-11), name
    # NequIP compares so narrowly: after a trace the model takes the quadrature in eager mode, too
    difference = (model(dict(data))["total_energy"] - pairs["total_energy"]).abs().max()
    assert 1e-9 < difference < 1e-2


def test_trace_of_a_periodic_structure_is_not_a_number():
    """A trace cannot raise an error, and must not be silently wrong."""
    model = randomize(with_efa(num_layers=1))
    data = frames(batched=False)
    data["edge_cell_shift"] = torch.zeros(data["edge_index"].shape[1], 3, dtype=torch.float64)
    traced = trace(model, data)
    assert all(value.isfinite().all() for value in traced(data).values())
    data["edge_cell_shift"][0, 1] = -1.0
    assert all(value.isnan().any() for value in traced(data).values())


def test_compiled_training_takes_the_model(monkeypatch):
    """compile_mode: compile, with the code generation left out: NequIP's wrapper, its trace and its own comparison."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    options = {"num_layers": 1, "model_dtype": "float64"}
    model = randomize(with_efa(compile_mode="compile", **options))
    eager = randomize(with_efa({"method": "quadrature"}, **options))
    assert model.is_compile_graph_model and not eager.is_compile_graph_model
    labels = {"total_energy": torch.zeros(2, 1), "forces": torch.zeros(9, 3)}
    data = batch_of(METHANOL, WATER)
    found, expected = model({**data, **labels}), eager(dict(data))
    assert len(model._compiled_cache[0]) == 1
    for name in OUTPUTS:
        assert torch.allclose(found[name], expected[name], rtol=0, atol=1e-11), name
    alone = batch_of(METHANOL)  # not compiled: eager, and the same sum
    assert torch.allclose(model(dict(alone))["total_energy"], eager(dict(alone))["total_energy"], rtol=0, atol=1e-11)
