"""Periodicity is read off the pbc flag; sizes of structures."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from efa_addons import EFAError
from efa_addons.nn import checks
from efa_addons.nn.checks import largest_distance, nan_if_periodic, refuse_periodic, width


@pytest.mark.parametrize("pbc", [None, [False, False, False], [[False] * 3, [False] * 3]], ids=str)
def test_open_structures_pass(pbc):
    refuse_periodic(None if pbc is None else torch.tensor(pbc))


@pytest.mark.parametrize("pbc", [[True, True, True], [False, False, True], [[False] * 3, [False, True, False]]], ids=str)
def test_any_periodic_direction_is_refused(pbc):
    with pytest.raises(EFAError, match="periodic structure .pbc has a true entry.*set pbc to false"):
        refuse_periodic(torch.tensor(pbc))


def test_a_gpu_is_not_waited_for(monkeypatch):
    """The flag of an earlier call is told; what the structure itself gets is NaN."""
    told = iter([None, True])
    monkeypatch.setattr(checks, "_of_device", {torch.device("cpu"): lambda device, compute: next(told)})
    refuse_periodic(torch.tensor([True]))
    with pytest.raises(EFAError, match="periodic structure"):
        refuse_periodic(torch.tensor([False]))
    refuse_periodic(torch.tensor([False]))  # told once, and looked at anew


def test_the_error_says_where_it_may_be_about_an_earlier_call(monkeypatch):
    meta = torch.device("meta")  # as a GPU, but never looked at
    monkeypatch.setattr(checks, "_of_device", {meta: lambda device, compute: True})
    with pytest.raises(EFAError, match="pbc has a true entry, in this call or an earlier one"):
        refuse_periodic(torch.empty(3, dtype=torch.bool, device=meta))


def test_threads_are_told_the_same(monkeypatch):
    """Two threads with periodic structures at a time: the second finds that the first has told already."""
    cpu = torch.device("cpu")
    monkeypatch.setattr(checks, "_of_device", {cpu: lambda device, compute: checks._of_device.pop(cpu) and compute()})
    with pytest.raises(EFAError, match="periodic structure"):
        refuse_periodic(torch.tensor([True]))


def test_nan_if_periodic():
    x, closed, opened = torch.randn(4, 3), torch.tensor([[False] * 3, [False, True, False]]), torch.zeros(2, 3) > 0
    assert nan_if_periodic(x, closed) is x and nan_if_periodic(x, None) is x  # refused on a CPU
    traced = make_fx(nan_if_periodic)(x, opened)
    assert torch.equal(traced(x, opened), x) and traced(x, closed).isnan().all()
    assert traced(x.double(), opened).dtype == torch.float64


def test_width():
    """Of the widest graph; graphs may be empty."""
    for sizes in ((50,), (3, 0, 40, 1)):
        batch = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
        points = torch.randn(len(batch), 3) * torch.rand(3) + 10 * batch[:, None]
        exact = largest_distance(points, batch)
        assert 0.995 * exact < width(points, batch, len(sizes)) < 1.0001 * exact


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
