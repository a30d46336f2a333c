"""Spherical harmonics: component order and normalisation."""

from math import sqrt

import torch

from efa_addons.ops.harmonics import solid_harmonics, spherical_harmonics


def test_components_up_to_degree_two():
    x, y, z = r = torch.tensor([2.0, -3.0, 6.0]) / 7
    expected = torch.tensor([
        1.0, x, y, z,
        sqrt(3) * x * z, sqrt(3) * x * y, (3 * y * y - 1) / 2, sqrt(3) * y * z, sqrt(3) / 2 * (z * z - x * x),
    ])  # fmt: skip
    assert (spherical_harmonics(2, 5 * r) - expected).abs().max() < 1e-6


def test_unit_norm_and_precision():
    values = spherical_harmonics(4, torch.randn(10, 3, dtype=torch.float64))
    norms = torch.stack([part.norm(dim=1) for part in values.split([1, 3, 5, 7, 9], dim=1)])
    assert (norms - 1).abs().max() < 1e-14
    assert spherical_harmonics(1, torch.randn(2, 3)).dtype == torch.float32


def test_solid_harmonics_are_the_polynomials_of_the_spherical_ones():
    r = torch.randn(20, 3, dtype=torch.float64)
    powers = r.norm(dim=1, keepdim=True) ** torch.tensor([degree for degree in range(6) for _ in range(2 * degree + 1)])
    solid = torch.stack(solid_harmonics(5, *r.unbind(1)), dim=1)
    assert (solid - powers * spherical_harmonics(5, r)).abs().max() < 1e-13 * powers.max()
    origin = torch.zeros(1, dtype=torch.float64)
    assert torch.stack(solid_harmonics(3, origin, origin, origin)).flatten().tolist() == [1.0] + 15 * [0.0]
