"""Weights that were trained with other settings are another function: a state dict tells, and has no entry more."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from efa_addons import EFABlock, EFAConfig, EFAError

IRREPS = "4x0e+4x1o"
OPTIONS = {"max_length": 10.0, "num_features_qk": 4, "num_features_v": 4, "mlp_features": 4}


def block(**options) -> EFABlock:
    return EFABlock(IRREPS, IRREPS, EFAConfig(**{**OPTIONS, **options}))


def through_a_file(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


COUPLED = {"tensor_integration": True, "ti_max_degree_sph": 2}


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({}, {"max_length": 20.0}),
        ({}, {"max_frequency": 2.0}),
        ({}, {"activation": "silu"}),
        ({}, {"include_self": False}),
        ({}, {"normalization": 5.0}),
        ({}, {"tensor_integration": True}),
        (COUPLED, {"ti_max_degree_sph": 1}),
        (COUPLED, {"ti_degree_scaling_constants": (1.0, 0.5, 0.5)}),
    ],
)
def test_other_settings_are_refused(options, changed):
    """Also as a part of a model, and from a file; what does not tell is taken as it is."""
    trained, other = nn.Sequential(block(**options)), nn.Sequential(block(**{**options, **changed}))
    state = through_a_file(trained.state_dict())
    with pytest.raises(EFAError, match=rf"0\.attention were trained with other settings: .*{next(iter(changed))}"):
        other.load_state_dict(state)
    nn.Sequential(block(**options)).load_state_dict(state)
    other.load_state_dict(dict(state))
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_what_makes_no_other_function_is_taken():
    """How it is computed."""
    trained = block()
    for other in (block(method="pairwise"), block(method="quadrature", tolerance=1e-3), block(lebedev_num=50)):
        other.load_state_dict(trained.state_dict())
    assert set(trained.state_dict()) == {name for name, _ in trained.named_parameters()}
