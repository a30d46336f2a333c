"""SchNetPack's PaiNN under the contract."""

from __future__ import annotations

from copy import deepcopy

import schnetpack
import torch
from case import CUTOFF, Case, Output
from schnetpack import properties
from schnetpack.md.utils import activate_model_stress
from schnetpack.model import NeuralNetworkPotential
from schnetpack.representation import PaiNN

from efa_addons.hosts import painn
from efa_addons.hosts.painn.describe import batch_of


class PaiNNCase(Case):
    adapter = painn
    suffix = ""
    any_element = True
    size = 0.15  # PaiNN multiplies its features with each other: larger ones explode

    def build(self, dtype):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            representation = PaiNN(
                n_atom_basis=6,
                n_interactions=3,
                radial_basis=schnetpack.nn.GaussianRBF(6, CUTOFF),
                cutoff_fn=schnetpack.nn.CosineCutoff(CUTOFF),
            )
            outputs = [schnetpack.atomistic.Atomwise(6, output_key="energy"), schnetpack.atomistic.Forces()]
            model = NeuralNetworkPotential(representation, [schnetpack.atomistic.PairwiseDistances()], outputs)
        return model.to(dtype).eval()

    def compute(self, model, batch, training=False):
        return self._run(self._with_stress(model).train(training), batch)

    def _with_stress(self, model):
        if "stress" in model.model_outputs:
            return model
        # in place, sharing the parameters, as SpkCalculator does with stress_key
        model = activate_model_stress(model, "stress")
        model.input_modules.insert(0, schnetpack.atomistic.Strain())
        return model

    def batch(self, model, structures, order=None):
        boxed = [atoms.copy() for atoms in structures]
        for atoms in boxed:
            if atoms.cell.rank < 3:
                atoms.set_cell([1.0, 1.0, 1.0])  # of volume 1: stress times volume is dE/dstrain
        inputs = batch_of(model, boxed)
        if order is not None:
            shuffled = torch.randperm(len(inputs[properties.idx_i]), generator=torch.Generator().manual_seed(order))
            for key in (properties.idx_i, properties.idx_j, properties.offsets):
                inputs[key] = inputs[key][shuffled]
        return inputs

    def _run(self, model, inputs):
        volumes = torch.linalg.det(inputs[properties.cell]).abs().view(-1, 1, 1)
        out = model(inputs)
        return Output(out["energy"], out["forces"], out["stress"] * volumes)

    def optimized(self, model):
        outputs = [schnetpack.task.ModelOutput("energy", torch.nn.MSELoss(), metrics={})]
        task = schnetpack.AtomisticTask(model, outputs, optimizer_args={"lr": 1e-3})
        return [p for group in task.configure_optimizers().param_groups for p in group["params"]]

    def save(self, model, path):
        torch.save(model, path)

    def calculate(self, path):
        return (
            "import torch\nfrom schnetpack.interfaces import SpkCalculator\nfrom schnetpack.transform import ASENeighborList\n"
            f"calculator = SpkCalculator({str(path)!r}, ASENeighborList({CUTOFF}), energy_unit='eV', dtype=torch.float64)"
        )

    def exported(self, model, structures):
        scripted = torch.jit.script(self._with_stress(deepcopy(model)).eval())
        return lambda others: self._run(scripted, self.batch(model, others))
