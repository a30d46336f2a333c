"""Grids of groups of frequencies: half the points stand for all of them, and every frequency gets its tolerance."""

import math

import numpy as np
import pytest
import torch

from efa_addons import EuclideanFastAttention
from efa_addons.ops.grid import frequency_groups, half_grid, make_grid
from efa_addons.ops.lebedev import LEBEDEV_DEGREES, lebedev_grid, lebedev_num_for

pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize("lebedev_num", [points for points in LEBEDEV_DEGREES if points < 1000])
def test_half_of_the_points_and_their_opposites_are_the_grid(lebedev_num):
    points, weights = half_grid(lebedev_num)
    assert len(points) == lebedev_num // 2
    assert weights.sum() == pytest.approx(1, abs=1e-14)
    rebuilt = np.concatenate([np.c_[points, weights / 2], np.c_[-points, weights / 2]])
    whole = np.c_[lebedev_grid(lebedev_num)[0], lebedev_grid(lebedev_num)[1]]
    distance = np.abs(rebuilt[:, None] - whole).max(axis=2)
    assert distance.min(axis=0).max() < 1e-12 and distance.min(axis=1).max() < 1e-12


@pytest.mark.parametrize("max_frequency", [math.pi, 4 * math.pi])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_every_channel_keeps_the_tolerance_with_fewer_points(max_frequency, tolerance):
    """sinc(ω r) up to max_length against the sum over the grid of its group, on the half grids as they are used."""
    module = EuclideanFastAttention(32, max_length=7.0, max_frequency=max_frequency, tolerance=tolerance)
    r = torch.linspace(0.05, 7.0, 40)
    axes = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    channel = direction = 0
    for directions, channels in zip(module.num_directions, module.num_channels, strict=True):
        u, weight = (part[direction : direction + directions] for part in (module.directions, module.even[:, 0]))
        for frequency in module.frequencies[channel : channel + channels]:
            phase = frequency * r
            found = torch.cos((axes @ u.T)[:, None] * phase[:, None]) @ weight
            assert (found - torch.sinc(phase / math.pi)).abs().max() < 1.2 * tolerance
        channel, direction = channel + channels, direction + directions
    assert channel == 16
    assert (
        2 * sum(m * c for m, c in zip(module.num_directions, module.num_channels, strict=True)) < 0.7 * 16 * module.lebedev_num
    )


def test_groups():
    assert frequency_groups([0.0, 1.0, 1.0, 3.0], 1e-5, 0) == [
        (1, 1),
        (lebedev_num_for(1.0, 1e-5), 2),
        (lebedev_num_for(3.0, 1e-5), 1),
    ]
    assert make_grid(frequency_groups([0.0], 1e-5, 2), [1.0, 1.0, 1.0]).even.tolist() == [[1, 0, 0, 0, 0, 0]]


def test_one_grid_where_its_points_are_given_or_frequencies_move():
    for options in ({"lebedev_num": 50}, {"frequencies_trainable": True}):
        module = EuclideanFastAttention(8, max_length=5.0, **options)
        assert (module.num_directions, module.num_channels) == ([25], [4])
        assert module.describe_grid() == "50 Lebedev points"
    assert EuclideanFastAttention(8, max_length=5.0).describe_grid() == "1 to 50 Lebedev points"
