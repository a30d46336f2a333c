"""EFAConfig: what it accepts, what it refuses, and that it survives files."""

import dataclasses
import json
import math

import pytest

from efa_addons import EFAConfig, EFAError

FULL = {
    "layers": [0, 2],
    "max_length": 12.5,
    "lebedev_num": 86,
    "num_features_qk": None,
    "max_degree_qk": 1,
    "include_pseudotensors_v": False,
    "activation": "gelu",
    "tensor_integration": True,
    "ti_degree_scaling_constants": [1.0, 0.5],
    "normalization": "auto",
    "emulate": True,
}


@pytest.mark.parametrize("options", [{}, FULL], ids=["default", "full"])
def test_round_trip(options):
    config = EFAConfig.from_dict(options)
    written = json.loads(json.dumps(config.to_dict()))
    assert EFAConfig.from_dict(written) == config
    assert options.items() <= written.items()
    assert set(written) == {field.name for field in dataclasses.fields(EFAConfig)}


def test_values_take_the_type_of_their_option():
    """YAML gives lists for tuples, integers for floats, and 1e-5 as text."""
    options = {"layers": [1, 0], "max_length": 7, "ti_degree_scaling_constants": [1, 2], "tolerance": "1e-4"}
    config = EFAConfig.from_dict(options)
    assert config.layers == (1, 0)
    assert config.tolerance == 1e-4
    assert (config.max_length, type(config.max_length)) == (7.0, float)
    assert [type(c) for c in config.ti_degree_scaling_constants] == [float, float]
    assert hash(config) == hash(config.replace())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_lenght": 5.0}, r"unknown EFA option 'max_lenght' \(did you mean 'max_length'\?\)"),
        ({"max_len": 5.0}, r"unknown EFA option 'max_len' \(did you mean 'max_length' or 'max_length_margin'\?\)"),
        ({"activtion": "silu", "xyz": 1}, r"'activtion' \(did you mean 'activation'\?\), 'xyz'; known: activation, "),
        ({"layers": "all"}, "layers must be a list of int .* or null, got 'all' .str."),
        ({"layers": 1}, r"layers must be a list of int \(\[0, 1\], say\) or null, got 1"),
        ({"layers": ["a"]}, "layers must be int, got 'a'"),
        ({"layers": []}, "layers must be a list of layer numbers from 0"),
        ({"layers": [0, -1]}, r"layers must be a list of layer numbers from 0, each once, got \[0, -1\]"),
        ({"layers": [0, 0]}, r"each once, got \[0, 0\]"),
        ({"max_length": "large"}, "max_length must be a number or 'auto', got 'large'"),
        ({"max_length": "10 A"}, "max_length must be a number or 'auto', got '10 A'"),
        ({"max_length": -1}, "max_length must be positive, got -1.0"),
        ({"max_length": math.inf}, "max_length must be positive, got inf"),
        ({"max_length": None}, "max_length must be float or text, got None"),
        ({"max_length": True}, "max_length must be float or text, got True .bool."),
        ({"normalization": 0}, "normalization must be positive, got 0.0"),
        ({"max_length_margin": 0.9}, "max_length_margin must be 1 or more, got 0.9"),
        ({"max_frequency": 0}, "max_frequency must be positive, got 0.0"),
        ({"max_frequency": math.inf}, "max_frequency must be positive, got inf"),
        ({"tolerance": math.nan}, "tolerance must be positive and below 1, the largest value of the kernel, got nan"),
        ({"tolerance": 2}, "tolerance must be positive and below 1, the largest value of the kernel, got 2.0"),
        ({"tolerance": "small"}, "tolerance must be float, got 'small' .str."),
        ({"lebedev_num": 51}, "lebedev_num=51 points; use 50 or 74"),
        ({"lebedev_num": 50.0}, "lebedev_num must be int or null, got 50.0"),
        ({"num_features_qk": 7}, "num_features_qk must be even .features rotate in pairs., got 7"),
        ({"num_features_qk": 0}, "num_features_qk must be 1 or more, got 0"),
        ({"num_features_v": -2}, "num_features_v must be 1 or more, got -2"),
        ({"mlp_features": 0}, "mlp_features must be 1 or more, got 0"),
        ({"max_degree_qk": -1}, "max_degree_qk must be 0 or more, got -1"),
        ({"ti_max_degree_sph": -1}, "ti_max_degree_sph must be 0 or more, got -1"),
        ({"activation": "swoosh"}, "unknown activation 'swoosh'; known: bent_identity, "),
        ({"activation": None}, "activation must be text, got None"),
        ({"emulate": 1}, "emulate must be true or false, got 1 .int."),
        ({"emulate": "yes"}, "emulate must be true or false, got 'yes'"),
        ({"ti_degree_scaling_constants": 2.0}, "ti_degree_scaling_constants must be a list of float .* or null, got 2.0"),
        ({"ti_degree_scaling_constants": [1, None]}, "ti_degree_scaling_constants must be float, got None"),
    ],
    ids=str,
)
def test_refusals(options, message):
    with pytest.raises(EFAError, match=message):
        EFAConfig.from_dict(options)


def test_auto_is_resolved_from_the_training_set():
    config = EFAConfig(max_length="auto", normalization="auto", max_length_margin=1.5)
    resolved = config.resolve(largest_distance=10.0, mean_num_atoms=21)
    assert config.needs_data
    assert not resolved.needs_data
    assert (resolved.max_length, resolved.normalization) == (15.0, 21.0)
    assert EFAConfig(max_length=8.0).resolve(100.0, 30.0) == EFAConfig(max_length=8.0)
    with pytest.raises(EFAError, match="auto needs structures of two or more atoms; the largest distance found is 0"):
        config.resolve(0, 1)


def test_replace():
    assert EFAConfig(layers=[0]).replace(emulate=True) == EFAConfig(layers=(0,), emulate=True)
    with pytest.raises(EFAError, match="did you mean 'emulate'"):
        EFAConfig().replace(emulated=True)


def test_help_has_a_line_for_every_option():
    lines = EFAConfig.help().splitlines()
    assert [line.split(" (")[0] for line in lines] == [field.name for field in dataclasses.fields(EFAConfig)]
    assert all(len(line.split("): ", 1)[1]) > 10 for line in lines)
