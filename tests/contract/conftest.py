"""The host of this environment: mace-torch, nequip and schnetpack live in environments of their own."""

from __future__ import annotations

import importlib
from importlib.util import find_spec

import pytest

CASES = {"mace": ("mace_case", "MACECase"), "nequip": ("nequip_case", "NequIPCase"), "schnetpack": ("painn_case", "PaiNNCase")}


@pytest.fixture(scope="session", params=CASES)
def host(request):
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not in this environment")
    module, name = CASES[request.param]
    return getattr(importlib.import_module(module), name)()
