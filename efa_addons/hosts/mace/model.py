"""ScaleShiftMACE with EFA: the class a model is given once EFA blocks are attached to its products.

Its forward is MACE's own, read from the installed package, plus a few lines at two anchors. `super().forward()` or wrappers
around the layers do not survive TorchScript, and a copy of the host's forward would age; a drift of the anchors is an error.
"""

from __future__ import annotations

import inspect
import linecache
import textwrap
import types
from typing import Dict

import mace
from mace.modules import models
from torch import Tensor, nn

from efa_addons._e3nn import o3
from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.nn import EFABlock, refuse_periodic

SUPPORTED = ("0.3.15", "0.3.16")

# (line of MACE's forward, line to put before it): the layer's input is kept, and EFA acts on it beside the local layer,
# x' = local(x) + nonlocal(x), before the result is recorded.
_ANCHORS = (
    ("node_feats, sc = interaction(", "node_feats_in = node_feats"),
    (
        "node_feats_list.append(node_feats)",
        'if hasattr(product, "efa"):\n    node_feats = node_feats + product.efa(node_feats_in, data, num_graphs)',
    ),
)


def patched_forward(source: str) -> str:
    """Source of ScaleShiftMACE.forward with the lines of EFA put in.

    Raises:
        EFAError: an anchor is not there exactly once, that is, this version of MACE is not supported.
    """
    lines = textwrap.dedent(source).splitlines()
    for anchor, addition in _ANCHORS:
        found = [i for i, line in enumerate(lines) if line.strip() == anchor]
        if len(found) != 1:
            raise EFAError(
                f"the forward of ScaleShiftMACE in mace-torch {mace.__version__} has the line '{anchor}' {len(found)} times "
                f"instead of once: EFA cannot be put into this version. Supported: {', '.join(SUPPORTED)}."
            )
        indent = lines[found[0]][: len(lines[found[0]]) - len(lines[found[0]].lstrip())]
        lines[found[0] : found[0]] = [indent + line for line in addition.splitlines()]
    return "\n".join(lines) + "\n"


def _forward_with_efa() -> types.FunctionType:
    """The patched forward, compiled in MACE's own name space; its source is registered for TorchScript and tracebacks."""
    original = models.ScaleShiftMACE.forward
    source = patched_forward(inspect.getsource(original))
    name = "<efa_addons: ScaleShiftMACE.forward with EFA>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    made: dict[str, types.FunctionType] = {}
    exec(compile(source, name, "exec"), original.__globals__, made)
    return made["forward"]


class EFAScaleShiftMACE(models.ScaleShiftMACE):
    """A ScaleShiftMACE whose products may carry an `efa` block. Made by `insert_efa`, never constructed directly.

    MACE's converters (cuEquivariance, OpenEquivariance) build a new model of the same class from its hyper-parameters: they
    would lose the blocks without a word, and are told so instead.
    """

    def __init__(self, *args: object, **options: object) -> None:
        raise EFAError(
            "a MACE model with EFA cannot be rebuilt from MACE's hyper-parameters alone (--enable_cueq, --enable_oeq); "
            "leave them out, or take EFA out first with `efa-addons strip`."
        )

    forward = _forward_with_efa()


# MACE's converters and its training script ask for this exact name; pickles go by __qualname__.
EFAScaleShiftMACE.__name__ = "ScaleShiftMACE"


class MACEEFA(nn.Module):
    """The EFA block of one layer, called with MACE's own data dictionary.

    Args:
        irreps_in, irreps_out: of the layer's input and output features.
        config: resolved EFAConfig.
        checks_pbc: refuse periodic structures here; one layer of a model is enough.
    """

    def __init__(self, irreps_in: str, irreps_out: str, config: EFAConfig, checks_pbc: bool) -> None:
        super().__init__()
        self.block = EFABlock(irreps_in, irreps_out, config)
        self.checks_pbc = checks_pbc
        self.enabled = True  # see `insert.without_efa`
        self.dim_out = o3.Irreps(irreps_out).dim

    def forward(self, node_feats: Tensor, data: Dict[str, Tensor], num_graphs: int) -> Tensor:
        # data["positions"] are the strained ones: with the leaf of the graph, stress would lack EFA's part.
        if "positions" not in data:
            raise EFAError("EFA needs positions, which ML-IAP does not pass: use MACE's libtorch interface of LAMMPS.")
        if not self.enabled:
            return node_feats.new_zeros([node_feats.shape[0], self.dim_out])
        if self.checks_pbc and "pbc" in data:
            refuse_periodic(data["pbc"])
        return self.block(node_feats, data["positions"], data["batch"], num_graphs)
