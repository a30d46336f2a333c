"""Lebedev grids: exactness, and how far in phase each one reaches."""

import math

import numpy as np
import pytest
from scipy.special import eval_legendre

from efa_addons import EFAError
from efa_addons.ops import lebedev
from efa_addons.ops.lebedev import LEBEDEV_DEGREES, lebedev_grid, lebedev_num_for, max_phase_for, quadrature_error

NEGATIVE = (74, 230, 266)

# Largest ω r / π below the tolerances 1e-3, 1e-4, 1e-5, 1e-6, measured over 200 random directions.
REACH = {
    14: (0.57, 0.38, 0.25, 0.17),
    50: (1.93, 1.55, 1.27, 1.05),
    86: (3.05, 2.57, 2.20, 1.87),
    110: (3.57, 3.05, 2.65, 2.30),
    194: (5.28, 4.65, 4.15, 3.73),
    302: (7.03, 6.35, 5.75, 5.25),
}


@pytest.mark.parametrize("num", [n for n in LEBEDEV_DEGREES if n <= 1202])
def test_exact_up_to_its_degree_and_no_further(num):
    points, weights = lebedev_grid(num)
    directions = np.array([[0.36, 0.48, 0.8], [0.0, 0.6, 0.8], [0.0, 0.0, 1.0]])
    cosines = points @ directions.T
    integrals = np.stack([weights @ eval_legendre(degree, cosines) for degree in range(LEBEDEV_DEGREES[num] + 2)])
    assert len(points) == num
    assert np.abs(np.linalg.norm(points, axis=1) - 1).max() < 1e-14
    assert abs(weights.sum() - 1) < 1e-14
    assert (weights.min() < 0) == (num in NEGATIVE)
    assert np.abs(integrals[1:-1]).max() < 1e-12
    assert np.abs(integrals[-1]).max() > 1e-3


@pytest.mark.parametrize(("num", "column"), [(num, column) for num in REACH for column in range(4)])
def test_reach_of_each_grid(num, column):
    assert max_phase_for(num, 10.0 ** -(3 + column)) / math.pi == pytest.approx(REACH[num][column], rel=0.05, abs=0.015)


@pytest.mark.parametrize("max_degree_sph", [0, 2])
@pytest.mark.parametrize(("max_phase", "tolerance"), [(0.4, 1e-3), (math.pi, 1e-5), (2 * math.pi, 1e-6), (12.0, 1e-4)])
def test_the_smallest_sufficient_grid_is_chosen(max_phase, tolerance, max_degree_sph):
    chosen = lebedev_num_for(max_phase, tolerance, max_degree_sph)
    smaller = [num for num in LEBEDEV_DEGREES if num < chosen and num not in NEGATIVE]
    assert quadrature_error(chosen, max_phase, max_degree_sph) <= tolerance
    assert all(quadrature_error(num, max_phase, max_degree_sph) > tolerance for num in smaller)
    assert max_phase <= max_phase_for(chosen, tolerance, max_degree_sph) * 1.002


def test_harmonics_under_the_integral_need_a_finer_grid():
    assert max_phase_for(50, 1e-5, max_degree_sph=2) < max_phase_for(50, 1e-5)
    assert lebedev_num_for(1.25 * math.pi, 1e-5) == 50
    assert lebedev_num_for(1.25 * math.pi, 1e-5, max_degree_sph=2) == 86


@pytest.mark.parametrize(("below", "negative"), [(50, 74), (194, 230)])
def test_grids_with_negative_weights_are_not_chosen(below, negative):
    tempting = 0.5 * (max_phase_for(below, 1e-4) + max_phase_for(negative, 1e-4))
    assert max_phase_for(below, 1e-4) < tempting < max_phase_for(negative, 1e-4)
    assert lebedev_num_for(tempting, 1e-4) > negative
    assert lebedev_num_for(tempting, 1e-4) not in NEGATIVE


@pytest.mark.parametrize(("num", "near"), [(5, "use 6 "), (100, "use 86 or 110 "), (10000, "use 5810 ")])
def test_error_names_the_nearest_grids(num, near):
    with pytest.raises(EFAError, match=f"lebedev_num={num} points; {near}"):
        lebedev_grid(num)


def test_error_when_no_grid_is_fine_enough(monkeypatch):
    monkeypatch.setattr(lebedev, "LEBEDEV_DEGREES", {6: 3, 14: 5})
    with pytest.raises(EFAError, match="no Lebedev grid up to 14 points reaches tolerance=1e-05 at max_frequency=20.125"):
        lebedev_num_for(20.125, 1e-5)


def test_error_for_a_tolerance_that_is_not_positive():
    with pytest.raises(EFAError, match="tolerance must be positive, got 0"):
        lebedev_num_for(1.0, 0.0)
