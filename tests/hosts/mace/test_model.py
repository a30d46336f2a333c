"""The forward with EFA follows MACE's own, and says so when it cannot."""

from __future__ import annotations

import inspect
import textwrap

import pytest
from mace.modules.models import ScaleShiftMACE

from efa_addons import EFAError
from efa_addons.hosts.derive import add_lines
from efa_addons.hosts.mace.model import FORWARD, SUPPORTED, EFAScaleShiftMACE

SOURCE = inspect.getsource(ScaleShiftMACE.forward)


def with_efa(source: str) -> str:
    return add_lines(source, FORWARD, "forward", SUPPORTED)


def test_only_lines_are_added():
    before = textwrap.dedent(SOURCE).splitlines()
    after = with_efa(SOURCE).splitlines()
    rest = iter(after)
    assert all(line in rest for line in before)  # a subsequence
    assert len(after) == len(before) + 4


@pytest.mark.parametrize("anchor", ["node_feats, sc = interaction(", "node_feats_list.append(node_feats)"])
def test_a_drifted_host_names_the_supported_versions(anchor):
    drifted = SOURCE.replace(anchor, "something_else(")
    with pytest.raises(EFAError, match=r"0 times instead of once.*Supported: 0\.3\.15, 0\.3\.16"):
        with_efa(drifted)
    with pytest.raises(EFAError, match="2 times"):
        with_efa(SOURCE + SOURCE)


def test_names_that_mace_and_pickle_look_for():
    assert EFAScaleShiftMACE.__name__ == "ScaleShiftMACE"
    assert EFAScaleShiftMACE.__qualname__ == "EFAScaleShiftMACE"
