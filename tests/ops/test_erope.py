"""ERoPE: frequencies, and rotation of feature pairs as multiplication by exp(i θ)."""

import math

import pytest
import torch

from efa_addons.ops.erope import default_frequencies, phase_factors, rotate


@pytest.mark.parametrize(("features", "multiples"), [(2, [1.0]), (3, [1.0]), (4, [0.0, 1.0]), (6, [0.0, 0.5, 1.0])])
def test_default_frequencies(features, multiples):
    expected = [m * math.pi / 8.0 for m in multiples]
    assert default_frequencies(features, math.pi, 8.0).tolist() == pytest.approx(expected)


def test_rotation_is_multiplication_by_a_phase():
    x, positions, directions = torch.randn(5, 4, 6), torch.randn(5, 3), torch.randn(7, 3)
    frequencies = torch.tensor([0.0, 0.4, 1.1])
    rotated = rotate(x, *phase_factors(positions, directions, frequencies)).unflatten(-1, (2, 4, 3))
    theta = (positions @ directions.T)[:, :, None] * frequencies
    expected = torch.view_as_complex(x.unflatten(-1, (-1, 2)))[:, None] * torch.exp(1j * theta)[:, :, None]
    assert (torch.complex(rotated[:, :, 0], rotated[:, :, 1]) - expected).abs().max() < 1e-5
