"""Periodicity is read off the pbc flag; sizes of structures."""

import pytest
import torch

from efa_addons import EFAError
from efa_addons.nn.checks import largest_distance, refuse_periodic


@pytest.mark.parametrize("pbc", [None, [False, False, False], [[False] * 3, [False] * 3]], ids=str)
def test_open_structures_pass(pbc):
    refuse_periodic(None if pbc is None else torch.tensor(pbc))


@pytest.mark.parametrize("pbc", [[True, True, True], [False, False, True], [[False] * 3, [False, True, False]]], ids=str)
def test_any_periodic_direction_is_refused(pbc):
    with pytest.raises(EFAError, match="periodic structure .pbc has a true entry.*set pbc to false"):
        refuse_periodic(torch.tensor(pbc))


def test_largest_distance_stays_within_graphs():
    positions = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 4, 0], [100, 0, 0], [100, 0, 1]])
    assert largest_distance(positions, torch.tensor([0, 0, 0, 2, 2])) == 5.0
    assert largest_distance(positions[:0], torch.zeros(0, dtype=torch.long)) == 0.0


def test_largest_distance_of_many_atoms_is_nearly_right():
    for _ in range(5):
        points = torch.randn(5000, 3) * torch.rand(3)
        exact = largest_distance(points[:4096], torch.zeros(4096, dtype=torch.long))
        more = torch.cat([points[:4096], points[:100]])  # no new places
        found = largest_distance(more, torch.zeros(len(more), dtype=torch.long))
        assert 0.995 * exact < found < 1.0001 * exact
