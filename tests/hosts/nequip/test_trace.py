"""Models with EFA under NequIP's tracer, which records twice with other sizes and wants the same graph: before compilation."""

from __future__ import annotations

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


@pytest.mark.parametrize(
    ("batched", "efa"),
    [(True, {"include_self": False}), (False, {"tensor_integration": True})],
    ids=["batch", "one structure"],
)
def test_trace_equals_eager_also_for_other_sizes(batched, efa):
    model = randomize(with_efa(efa, num_layers=1))
    data = frames(batched)
    fields, weights = list(data), dict(model.model.named_parameters()) | dict(model.model.named_buffers())
    wrapped = ListInputOutputStateDictWrapper(model.model, fields, OUTPUTS, list(weights))
    traced = nequip_make_fx(wrapped, data, fields, list(weights.values()))
    other = batch_of(METHANOL, WATER) if batched else batch_of(ETHANOL)
    for structures in (data, {key: other[key] for key in fields}):
        expected = model(dict(structures))
        found = traced(*[structures[key] for key in fields], *weights.values())
        for name, value in zip(OUTPUTS, found, strict=True):
            assert torch.allclose(value, expected[name], rtol=0, atol=2e-5), name  # the trace takes the quadrature
