"""A NequIP layer with EFA beside it.

What is here and in the core travels inside packaged models: it imports nothing that NequIP's packager does not know, and of
NequIP no module that a package does not have anyway. What lacks there, as `nequip.nn` itself, would be the installed one's,
among the modules of the NequIP that the base was packaged with.
"""

from __future__ import annotations

import sys
from typing import Dict, Final, Optional

import torch
from nequip.data import AtomicDataDict
from nequip.nn._graph_mixin import GraphModuleMixin
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from efa_addons.config import EFAConfig
from efa_addons.errors import EFAError
from efa_addons.nn.block import EFABlock
from efa_addons.nn.checks import nan_if_periodic, refuse_periodic
from efa_addons.nn.guard import GuardedWeights

MODES = ("parallel", "sequential")
MAX_LENGTH = "efa_max_length"  # among a model's metadata
_NO_MLIAP = (
    "EFA needs the positions of all atoms, and LAMMPS' ML-IAP interface passes edge vectors only: compile the model with "
    "nequip-compile --target pair_nequip and run it on one rank."
)


class EFALayer(GraphModuleMixin, GuardedWeights):
    """x' = local(x) + EFA(x) (parallel, the paper's form), or y = local(x), x' = y + EFA(y) (sequential).

    A sequential block sees nothing of an atom without neighbours, whose local output is zero; a parallel one does.

    Args:
        local: the layer of the host, whatever its class (that of a packaged model is not the installed one).
        config: resolved EFAConfig.
        mode: "parallel" or "sequential".
        checks: look for what EFA cannot serve; one layer of a model is enough.
    """

    is_efa_layer: Final[bool] = True  # packaged models have classes of their own: they are found by this

    def __init__(self, local: torch.nn.Module, config: EFAConfig, mode: str, checks: bool) -> None:
        super().__init__()
        self.local = local
        self.irreps_in, self.irreps_out = dict(local.irreps_in), dict(local.irreps_out)
        target = local.irreps_out[AtomicDataDict.NODE_FEATURES_KEY]
        source = local.irreps_in[AtomicDataDict.NODE_FEATURES_KEY] if mode == "parallel" else target
        self.efa = EFABlock(str(source), str(target), config)
        self.parallel = mode == "parallel"
        self.settings = {"mode": mode}  # see GuardedWeights
        self.checks = checks
        self.max_length = float(config.max_length)
        self.enabled = True  # see `insert.without_efa`

    def forward(self, data: Dict[str, Tensor]) -> Dict[str, Tensor]:
        if not self.enabled:
            return self.local(data)
        if self.checks:
            refuse_what_efa_cannot_serve(data)
        if get_proxy_mode() is not None:
            self._keep_to_the_quadrature()
        if self.parallel:
            attended = self._attend(data)
            data = self.local(data)
        else:
            data = self.local(data)
            attended = self._attend(data)
        features = data[AtomicDataDict.NODE_FEATURES_KEY] + attended
        data[AtomicDataDict.NODE_FEATURES_KEY] = nan_if_periodic(features, crossings(data)) if self.checks else features
        return data

    @torch.jit.unused
    def _get_metadata_contributions(self) -> Dict[str, str]:
        """What a compiled model carries; asked for by NequIP's programs for inference, among them the one for ML-IAP."""
        frame = sys._getframe()
        while frame is not None:
            if frame.f_globals.get("__name__", "").startswith("nequip.integrations.lammps_mliap"):
                raise EFAError(_NO_MLIAP)
            frame = frame.f_back
        return {MAX_LENGTH: str(self.max_length)} if self.checks else {}

    @torch.jit.unused
    def _keep_to_the_quadrature(self) -> None:
        """A model that NequIP records takes the quadrature in the record, and from then on in eager mode, too.

        NequIP compares the two (in double precision to 1e-12), and trains with both: it compiles no batch of one structure.
        """
        if getattr(self.efa.attention, "method", "") == "auto":
            self.efa.attention.pairwise_up_to = 0

    def _attend(self, data: Dict[str, Tensor]) -> Tensor:
        # A single structure may come without `batch` and `num_atoms`, as from the compiled models' callers.
        batch = data.get(AtomicDataDict.BATCH_KEY)
        num_graphs = 1 if batch is None else AtomicDataDict.num_frames(data)
        positions = data[AtomicDataDict.POSITIONS_KEY]  # strained where there is a strain; float64 whatever the model's dtype
        return self.efa(data[AtomicDataDict.NODE_FEATURES_KEY], positions, batch, num_graphs)


def refuse_what_efa_cannot_serve(data: Dict[str, Tensor]) -> None:
    """ML-IAP, which has no positions, and structures with edges to periodic images."""
    # by its name: NequIP 0.12 knows no LMP_MLIAP_DATA_KEY
    if AtomicDataDict.POSITIONS_KEY not in data or "lmp_mliap_data" in data:
        raise EFAError(_NO_MLIAP)
    refuse_periodic(crossings(data), "an edge to a periodic image")


def crossings(data: Dict[str, Tensor]) -> Optional[Tensor]:
    """True where an edge leads to a periodic image (NequIP's models do not see pbc)."""
    shifts = data.get(AtomicDataDict.EDGE_CELL_SHIFT_KEY)
    return None if shifts is None else shifts != 0
