"""Tests of Triton's kernels on a CPU, by its interpreter: a process of their own, as triton must be imported for it.

tests/ops/test_triton.py runs them; alone: TRITON_INTERPRET=1 pytest tests/ops/interpreted
"""

import pytest

from efa_addons.ops.backends import backend, interpreted

collect_ignore_glob = [] if interpreted() else ["test_*.py"]


@pytest.fixture(autouse=True)
def in_float32(monkeypatch):
    """Products in plain float32 unless a test says otherwise: the interpreter is three times as fast."""
    monkeypatch.setenv("EFA_ADDONS_PRECISION", "ieee")


@pytest.fixture
def by_triton():
    with backend("triton"):
        yield
