"""Weights that were trained with other settings are another function: a state dict tells, and has no entry more."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from efa_addons import EFABlock, EFAConfig, EFAError, EuclideanFastAttention

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
    name = next(iter(changed)).replace("max_length", "max_frequency / max_length")
    with pytest.raises(EFAError, match=rf"0\.attention were trained with other settings: .*{name}"):
        other.load_state_dict(state)
    nn.Sequential(block(**options)).load_state_dict(state)
    other.load_state_dict(dict(state))
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_what_makes_no_other_function_is_taken():
    """How it is computed, the same frequencies for larger structures, and frequencies that are weights."""
    trained = block()
    longer = block(max_length=20.0, max_frequency=2 * torch.pi)
    for other in (block(method="pairwise"), block(method="quadrature", tolerance=1e-3), block(lebedev_num=50), longer):
        other.load_state_dict(trained.state_dict())
    block(frequencies_trainable=True, max_length=20.0).load_state_dict(block(frequencies_trainable=True).state_dict())
    assert set(trained.state_dict()) == {name for name, _ in trained.named_parameters()}


def test_modules_of_an_earlier_version_tell_nothing():
    """And compare nothing: pickles of them go on, and are brought to this version."""
    old = block()
    del old.attention.settings
    state = old.state_dict()
    block(max_length=20.0).load_state_dict(state)
    old.load_state_dict(block(max_length=20.0).state_dict())
    old.version = "0.0.1"
    for settings in ({}, {"normalization": 7.0}):  # of a version that meant something else by it
        old.attention.settings = settings
        assert copy.deepcopy(old).attention.settings == block().attention.settings


def test_numbers_of_numpy_do_not_spoil_a_file():
    module = EuclideanFastAttention(4, np.int64(1), max_length=np.float64(5.0), include_self=np.bool_(True))
    module.load_state_dict(through_a_file(module.state_dict()))
