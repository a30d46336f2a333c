"""How the quadrature's sums are carried out.

"chunked": part by part (`ops.waves`), in a trace as a node (`ops.library`). "plain": by operations of torch, all at once: any
number of derivatives, and traces that every runtime can run. "auto": plain in traces, otherwise chunked.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from efa_addons.errors import unknown_names
from efa_addons.ops.tracing import tracing

VARIABLE = "EFA_ADDONS_BACKEND"
BACKENDS = ("auto", "chunked", "plain")
_chosen = os.environ.get(VARIABLE) or "auto"  # read once: torch.compile would ask again and again


def choice() -> str:
    """ "plain", "chunked", or "node" for chunked in a trace.

    Raises:
        EFAError: EFA_ADDONS_BACKEND is none of "auto", "chunked" and "plain".
    """
    if _chosen not in BACKENDS:
        raise unknown_names(VARIABLE, [_chosen], BACKENDS)
    if not tracing():
        return "plain" if _chosen == "plain" else "chunked"
    return "node" if _chosen == "chunked" else "plain"


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
