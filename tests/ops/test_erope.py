"""Default frequencies of ERoPE."""

import math

import pytest

from efa_addons.ops.erope import default_frequencies


@pytest.mark.parametrize(("features", "multiples"), [(2, [1.0]), (3, [1.0]), (4, [0.0, 1.0]), (6, [0.0, 0.5, 1.0])])
def test_default_frequencies(features, multiples):
    expected = [m * math.pi / 8.0 for m in multiples]
    assert default_frequencies(features, math.pi, 8.0).tolist() == pytest.approx(expected)
