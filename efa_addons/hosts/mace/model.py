"""ScaleShiftMACE with EFA: the class a model is given once EFA blocks are attached to its products."""

from __future__ import annotations

from typing import Dict

import torch
from mace.modules import models
from torch import Tensor, nn

from efa_addons._e3nn import Irreps
from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.hosts.derive import Supported, derive
from efa_addons.nn import EFABlock, nan_if_periodic, refuse_periodic

SUPPORTED = Supported("mace-torch", ("0.3.15", "0.3.16"))
# The layer's input is kept, and EFA acts on it beside the local layer, x' = local(x) + nonlocal(x), before that is recorded.
FORWARD = (
    ("node_feats, sc = interaction(", "node_feats_in = node_feats"),
    (
        "node_feats_list.append(node_feats)",
        'if hasattr(product, "efa"):\n'
        "    per_edge = compute_edge_forces or compute_atomic_stresses\n"
        "    node_feats = node_feats + product.efa(node_feats_in, data, num_graphs, per_edge)",
    ),
)
# What pair_mace knows of ghost atoms, for the blocks to look at.
LAMMPS_FORWARD = (("out = self.model(", 'data["local_or_ghost"] = local_or_ghost'),)


class EFAScaleShiftMACE(models.ScaleShiftMACE):
    """A ScaleShiftMACE whose products may carry an `efa` block. Made by `insert_efa`, never constructed directly.

    What builds a new model of the same class from its hyper-parameters would lose the blocks without a word, and is told so
    instead; for what MACE has of that kind see `hooks`.
    """

    def __init__(self, *args: object, **options: object) -> None:
        raise EFAError(
            "a MACE model with EFA cannot be rebuilt from MACE's hyper-parameters alone: convert it in Python after `import "
            "efa_addons.hosts.mace`, or take EFA out first with `efa-addons strip`."
        )

    forward = derive(models.ScaleShiftMACE.forward, FORWARD, SUPPORTED)


# MACE's converters and its training script ask for this exact name; pickles go by __qualname__.
EFAScaleShiftMACE.__name__ = "ScaleShiftMACE"


class MACEEFA(nn.Module):
    """The EFA block of one layer, called with MACE's own data dictionary.

    Args:
        irreps_in, irreps_out: of the layer's input and output features.
        config: resolved EFAConfig.
        layout: "mul_ir" or "ir_mul", of both.
        checks: look for what EFA cannot serve; one layer of a model is enough.
    """

    def __init__(self, irreps_in: str, irreps_out: str, config: EFAConfig, layout: str, checks: bool) -> None:
        super().__init__()
        self.block = EFABlock(irreps_in, irreps_out, config, layout)
        self.checks = checks
        self.enabled = True  # see `insert.without_efa`
        self.dim_out = Irreps(irreps_out).dim

    def forward(self, node_feats: Tensor, data: Dict[str, Tensor], num_graphs: int, per_edge: bool = False) -> Tensor:
        """The residual to add to the layer's output; `per_edge` when forces on edges or atomic stresses are asked for."""
        if not self.enabled:
            return node_feats.new_zeros([node_feats.shape[0], self.dim_out])
        if self.checks:
            refuse_what_efa_cannot_serve(data, per_edge)
        # data["positions"] are the strained ones: with the leaf of the graph, stress would lack EFA's part.
        out = self.block(node_feats, data["positions"], data["batch"], num_graphs)
        return nan_if_periodic(out, data["pbc"]) if self.checks and "pbc" in data else out


def refuse_what_efa_cannot_serve(data: Dict[str, Tensor], per_edge: bool) -> None:
    """Periodic structures, by their pbc flag or, where there is none (from LAMMPS, say), by edges to periodic images; ghost
    atoms; and outputs that MACE sums up from derivatives by edges, in which EFA has no part."""
    if per_edge:
        raise EFAError(
            "atomic stresses, atomic virials and edge forces (compute_atomic_stresses, compute_edge_forces) are sums over "
            "edges, and would lack EFA, which acts between all atoms: leave them out; energy, forces and stress are complete."
        )
    if "pbc" in data:
        refuse_periodic(data["pbc"])
    else:
        if torch.jit.is_scripting() and "local_or_ghost" not in data:
            raise EFAError(
                "a compiled model of EFA got a structure without pbc, as from LAMMPS: exported from a compiled file, a model "
                "is not told which atoms are ghosts. Give mace_create_lammps_model the .model file; elsewhere, add pbc to data."
            )
        refuse_periodic(data["shifts"] != 0, "an edge to a periodic image")
    if "local_or_ghost" in data and not bool(data["local_or_ghost"].all().item()):
        raise EFAError(
            "EFA got ghost atoms, and would attend to them as to atoms: run LAMMPS on one rank with "
            "'pair_style mace no_domain_decomposition'."
        )
