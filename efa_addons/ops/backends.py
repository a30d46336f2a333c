"""How the quadrature's sums are carried out: "chunked" (part by part, `ops.waves`) or "plain" (operations of torch at once)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from efa_addons.errors import unknown_names
from efa_addons.ops.tracing import tracing

VARIABLE = "EFA_ADDONS_BACKEND"
BACKENDS = ("auto", "chunked", "plain")
_chosen = os.environ.get(VARIABLE) or "auto"  # read once: torch.compile would ask again and again


def plain() -> bool:
    """Whether the sums are to be operations of torch: in traces, which know nothing else, or because it was asked for.

    Raises:
        EFAError: EFA_ADDONS_BACKEND is none of "auto", "chunked" and "plain".
    """
    if _chosen not in BACKENDS:
        raise unknown_names(VARIABLE, [_chosen], BACKENDS)
    return _chosen == "plain" or tracing()


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within it the sums are carried out as `name` says; otherwise as the environment variable EFA_ADDONS_BACKEND does.

    with backend("plain"):  # any number of derivatives
        ...
    """
    global _chosen
    if name not in BACKENDS:
        raise unknown_names("backend", [name], BACKENDS)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before
