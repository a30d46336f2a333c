"""Flat features of a host into the core and back."""

import pytest
import torch

from efa_addons import EFAError
from efa_addons.nn.layouts import LAYOUTS, Pack, Unpack, feature_type

IRREPS = ["4x0e", "16x0e+16x1o+16x2e", "8x0e+4x1o+2x1e", "2x0e+1x1o+3x0e", "3x1o+2x0e+1x2o", "1x3o"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("irreps", IRREPS)
def test_round_trip(irreps, layout):
    pack, unpack = Pack(irreps, layout), Unpack(irreps, layout)
    x = torch.randn(5, pack.dim)
    packed = pack(x)
    assert packed.shape == (5, pack.kind.num_components, pack.kind.num_features)
    assert (packed != 0).sum() == x.numel()
    assert torch.equal(unpack(packed), x)
    assert pack(x[:0]).shape == (0, *packed.shape[1:])


@pytest.mark.parametrize(
    ("irreps", "expected"),
    [
        ("16x0e+16x1o", (1, False, 16)),
        ("8x0e+4x1o+2x1e", (1, True, 8)),
        ("2x0e+1x1o+3x0e", (1, False, 5)),
        ("1x3o", (3, False, 1)),
    ],
)
def test_smallest_type_that_holds_the_irreps(irreps, expected):
    assert tuple(feature_type(irreps)) == expected


def test_places_of_each_layout():
    """Two vectors a and b: mul_ir stores ax ay az bx by bz, ir_mul ax bx ay by az bz; rarer irreps are filled with zeros."""
    stored = {"mul_ir": [7.0, 1, 2, 3, 4, 5, 6], "ir_mul": [7.0, 1, 4, 2, 5, 3, 6]}
    for layout, x in stored.items():
        packed = Pack("1x0e+2x1o", layout)(torch.tensor([x]))
        assert packed[0].tolist() == [[7, 0], [1, 4], [2, 5], [3, 6]]


def test_errors():
    with pytest.raises(EFAError, match="layout must be one of mul_ir, ir_mul, got 'ir-mul'"):
        Pack("1x0e", "ir-mul")
    with pytest.raises(EFAError, match="irreps must not be empty"):
        Pack("")
    with pytest.raises(EFAError, match=r"features must have the shape \(atoms, 7\), got \[5, 8\]"):
        Pack("1x0e+2x1o")(torch.randn(5, 8))
