"""MACE under the contract."""

from __future__ import annotations

import argparse
from copy import deepcopy

import numpy as np
import torch
from ase.build import molecule
from case import CUTOFF, ELEMENTS, SHIFTS, Case, Output
from e3nn.util import jit
from mace import modules
from mace.tools import scripts_utils

from efa_addons._e3nn import Irreps
from efa_addons.dtype import default_dtype
from efa_addons.hosts import mace
from efa_addons.hosts.mace.probe import batch_of


class MACECase(Case):
    adapter = mace
    suffix = ".model"

    def build(self, dtype):
        block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
        with torch.random.fork_rng(), default_dtype(dtype):
            torch.manual_seed(3)
            model = modules.ScaleShiftMACE(
                r_max=CUTOFF,
                num_bessel=4,
                num_polynomial_cutoff=5,
                max_ell=2,
                interaction_cls=block,
                interaction_cls_first=block,
                num_interactions=3,
                num_elements=len(ELEMENTS),
                hidden_irreps=Irreps("4x0e+4x1o"),
                MLP_irreps=Irreps("4x0e"),
                gate=torch.nn.functional.silu,
                atomic_energies=np.array([SHIFTS[element] for element in ELEMENTS]),
                avg_num_neighbors=3.0,
                atomic_numbers=[1, 6, 8],
                correlation=2,
                radial_MLP=[8],
                radial_type="bessel",
                atomic_inter_scale=1.0,
                atomic_inter_shift=0.0,
            )
        model = deepcopy(model)  # as from a file: e3nn's code is TorchScript then
        for _ in range(2):
            self.evaluate(model, [molecule("H2O")])  # which rounds differently the first time it runs
        return model

    def batch(self, model, structures, order=None):
        batch = batch_of(model, structures)
        if order is not None:
            shuffled = torch.randperm(batch["edge_index"].shape[1], generator=torch.Generator().manual_seed(order))
            batch["edge_index"] = batch["edge_index"][:, shuffled]
            for key in ("shifts", "unit_shifts"):
                batch[key] = batch[key][shuffled]
        return batch

    def compute(self, model, batch, training=False):
        out = model(batch, compute_virials=True, training=training)
        return Output(out["energy"], out["forces"], -out["virials"])

    def optimized(self, model):
        args = argparse.Namespace(
            lr=0.01, weight_decay=1e-6, amsgrad=False, beta=0.9, lr_params_factors="{}", optimizer="adam", freeze=None
        )
        groups = scripts_utils.get_params_options(args, model)["params"]
        return [parameter for group in groups for parameter in group["params"]]

    def save(self, model, path):
        torch.save(model, path)

    def calculate(self, path):
        return (
            "from mace.calculators import MACECalculator\n"
            f"calculator = MACECalculator(model_paths={str(path)!r}, device='cpu', default_dtype='float64')"
        )

    def exported(self, model, structures):
        scripted = jit.compile(deepcopy(model))
        return lambda others: self.compute(scripted, self.batch(model, others))
