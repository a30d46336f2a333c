"""g_l(t) = j_l(sqrt t)/sqrt(t)^l against mpmath and scipy: values and derivatives, t = 0 included, both precisions."""

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import spherical_jn

from efa_addons.ops.bessel import kernel_values, spherical_bessel

LARGEST = (30 * np.pi) ** 2
POINTS = np.concatenate([[0.0, 1e-300, 1e-12, 1e-3], np.geomspace(0.01, 80.0, 60), np.geomspace(85.0, LARGEST, 25)])


def exact(order, t):
    """In 50 digits, so that small t lose none."""
    with mpmath.workdps(50):
        if t == 0:
            return float(1 / mpmath.fac2(2 * order + 1))
        root = mpmath.sqrt(mpmath.mpf(float(t)))
        return float(mpmath.sqrt(mpmath.pi / (2 * root)) * mpmath.besselj(order + mpmath.mpf(1) / 2, root) / root**order)


@pytest.mark.parametrize(("dtype", "bounds"), [(torch.float64, (1e-14, 1e-14, 2e-14, 1e-12)), (torch.float32, (5e-6,) * 4)])
@pytest.mark.parametrize("order", range(9))
def test_values_and_three_derivatives(order, dtype, bounds):
    t = torch.tensor(POINTS, dtype=dtype, requires_grad=True)
    value = spherical_bessel(order, t)
    for derivative, bound in enumerate(bounds[: 3 if dtype == torch.float32 else 4]):
        scale = 0.5**derivative * exact(order + derivative, 0)
        expected = (-1) ** derivative * np.array([exact(order + derivative, x) for x in t.detach().double()])
        assert np.abs(value.detach().double().numpy() - 0.5**derivative * expected).max() < bound * scale
        if derivative < 3:
            (value,) = torch.autograd.grad(value.sum(), t, create_graph=True)


def test_is_the_spherical_bessel_function():
    x = torch.linspace(0.5, 90.0, 300, dtype=torch.float64)
    for order in range(7):
        expected = torch.as_tensor(spherical_jn(order, x.numpy()))
        assert (x**order * spherical_bessel(order, x * x) - expected).abs().max() < 1e-13


@pytest.mark.parametrize("phase", [0.0, 1e-8, 0.5, 3.9, 4.1, 12.0, 29.9, 30.1, 94.0])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-16), (torch.float32, 6e-8)], ids=str)
def test_all_frequencies_at_once(phase, dtype, rounding):
    """Over the switches between power series, Chebyshev polynomials and single values."""
    t = torch.cat([torch.zeros(2), torch.rand(398) ** 3]).view(4, 10, 10).to(dtype) * 100
    t[0, 0, 5] = 100.0
    squares = (torch.linspace(0, phase / 10, 5, dtype=torch.float64) ** 2).to(dtype)
    for order in (0, 1, 4, 8):
        expected = spherical_bessel(order, squares.double().view(-1, 1, 1, 1) * t.double())
        values = kernel_values(order, squares, t)
        assert values.dtype == dtype and values.shape == (5, 4, 10, 10)
        assert (values - expected).abs().max() < rounding * (50 + phase**2 / 3) * exact(order, 0)


def test_nothing_to_compute():
    assert kernel_values(1, torch.ones(3), torch.zeros(0, 2, 2)).shape == (3, 0, 2, 2)
    assert torch.equal(kernel_values(0, torch.zeros(2), torch.zeros(1, 1, 1)), torch.ones(2, 1, 1, 1))
