"""Clebsch-Gordan coefficients: the same numbers and signs under every version of e3nn."""

import itertools
from math import sqrt

import numpy as np
import pytest
import torch
from e3nn import o3

from efa_addons.ops.clebsch_gordan import clebsch_gordan

TRIPLES = [t for t in itertools.product(range(5), repeat=3) if abs(t[0] - t[1]) <= t[2] <= t[0] + t[1]]
EPSILON = np.zeros((3, 3, 3))
for i, j, k in itertools.permutations(range(3)):
    EPSILON[i, j, k] = np.linalg.det(np.eye(3)[[i, j, k]])


def test_products_of_vectors():
    assert np.abs(clebsch_gordan(1, 1, 0)[:, :, 0] - np.eye(3) / sqrt(3)).max() < 1e-15
    assert np.abs(clebsch_gordan(1, 1, 1) - EPSILON / sqrt(2)).max() < 1e-15
    product = np.einsum("abc,a,b->c", clebsch_gordan(1, 1, 2), [1, 0, 0], [0, 0, 1])  # e3nn's degree 2 starts with sqrt(3) x z
    assert np.abs(product - [1 / sqrt(2), 0, 0, 0, 0]).max() < 1e-15


@pytest.mark.parametrize("degree", range(5))
def test_product_with_a_scalar_is_the_identity(degree):
    identity = np.eye(2 * degree + 1)
    assert np.abs(clebsch_gordan(0, degree, degree)[0] - identity).max() < 1e-15
    assert np.abs(clebsch_gordan(degree, 0, degree)[:, 0] - identity).max() < 1e-15


@pytest.mark.parametrize(
    ("triple", "index", "value"),
    [
        ((1, 2, 2), (0, 0, 1), -1 / sqrt(6)),
        ((1, 2, 2), (0, 1, 0), 1 / sqrt(6)),
        ((2, 1, 2), (0, 0, 1), 1 / sqrt(6)),
        ((2, 1, 2), (0, 1, 4), sqrt(2 / 3)),
        ((2, 2, 1), (0, 1, 0), -1 / sqrt(10)),
        ((2, 2, 1), (0, 3, 2), 1 / sqrt(10)),
        ((1, 3, 3), (0, 0, 1), -1 / sqrt(8)),
        ((1, 3, 3), (0, 1, 0), 1 / sqrt(8)),
        ((3, 3, 1), (0, 1, 0), -sqrt(3 / 56)),
        ((3, 3, 1), (0, 5, 2), sqrt(3 / 56)),
    ],
)
def test_signs_are_fixed(triple, index, value):
    """e3nn turned signs of these between 0.4 and 0.6; trained coupling weights rely on ours."""
    assert clebsch_gordan(*triple)[index] == pytest.approx(value, abs=1e-14)


@pytest.mark.parametrize("triple", TRIPLES)
def test_equals_e3nn_up_to_sign(triple):
    ours = torch.as_tensor(clebsch_gordan(*triple))
    theirs = o3.wigner_3j(*triple, dtype=torch.float64) * sqrt(2 * triple[2] + 1)
    assert min((ours - theirs).abs().max(), (ours + theirs).abs().max()) < 1e-12


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("triple", TRIPLES)
def test_coupling_is_equivariant(triple):
    rotation = o3.rand_matrix()
    d1, d2, d3 = (o3.Irrep(degree, 1).D_from_matrix(rotation) for degree in triple)
    table = torch.as_tensor(clebsch_gordan(*triple))
    assert (torch.einsum("ai,bj,ck,ijk->abc", d1, d2, d3, table) - table).abs().max() < 1e-10
    assert table.square().sum() == pytest.approx(2 * triple[2] + 1)


def test_impossible_triples_vanish():
    assert clebsch_gordan(1, 1, 3).shape == (3, 3, 7)
    assert not clebsch_gordan(1, 1, 3).any()
