"""NequIP under the contract."""

from __future__ import annotations

import lightning
import torch
from case import CUTOFF, ELEMENTS, SHIFTS, Case, Output
from nequip.data import AtomicDataDict
from nequip.model import NequIPGNNModel
from nequip.nn.compile import ListInputOutputStateDictWrapper
from nequip.train import NequIPLightningModule
from nequip.utils.fx import nequip_make_fx
from nequip.utils.global_state import set_global_state

from efa_addons.hosts import nequip
from efa_addons.hosts.nequip.describe import batch_of

OUTPUTS = [AtomicDataDict.TOTAL_ENERGY_KEY, AtomicDataDict.FORCE_KEY, AtomicDataDict.VIRIAL_KEY]


class NequIPCase(Case):
    adapter = nequip
    suffix = ".ckpt"
    too_slow_to_export = ("default", "all degrees")  # minutes of tracing for three layers; tests/hosts/nequip trace one
    # NequIP's own weights of spherical harmonics and radial functions are rounded to single precision
    tolerance = 1e-6

    def build(self, dtype):
        set_global_state(allow_tf32=False)
        with torch.random.fork_rng():
            return NequIPGNNModel(**self._options(dtype)).eval()

    def _options(self, dtype):
        return {
            "seed": 3,
            "model_dtype": str(dtype).removeprefix("torch."),
            "type_names": list(ELEMENTS),
            "r_max": CUTOFF,
            "num_layers": 3,
            "l_max": 1,
            "parity": True,
            "num_features": 4,
            "radial_mlp_width": 8,
            "avg_num_neighbors": 3.0,
            "per_type_energy_shifts": SHIFTS,
            "per_type_energy_scales": 1.0,
        }

    def compute(self, model, batch, training=False):
        out = model.train(training)(batch)
        return self._output([out[name] for name in OUTPUTS])

    def _output(self, values):
        energy, forces, virial = values
        return Output(energy.view(-1), forces, -virial)

    def batch(self, model, structures, order=None):
        data = batch_of(model, structures)
        if order is not None:
            shuffled = torch.randperm(data["edge_index"].shape[1], generator=torch.Generator().manual_seed(order))
            data["edge_index"] = data["edge_index"][:, shuffled]
            if "edge_cell_shift" in data:
                data["edge_cell_shift"] = data["edge_cell_shift"][shuffled]
        return data

    def optimized(self, model):
        return [p for group in nequip.EFAParamGroups(model) for p in group["params"]]

    def save(self, model, path):
        """A checkpoint as training would write it: the configuration and the weights."""
        target = {"_target_": "nequip.model.NequIPGNNModel", **self._options(next(model.parameters()).dtype)}
        config = nequip.efa_config(model)
        if config is not None:
            target = {"_target_": "efa_addons.hosts.nequip.InsertEFA", "efa": config.to_dict(), "model": target}
        module = NequIPLightningModule(
            model=target,
            num_datasets=dict.fromkeys(("train", "val", "test", "predict"), 1),
            info_dict={"versions": {}, "training_module": {"_target_": "nequip.train.NequIPLightningModule"}},
        )
        module.model["sole_model"].load_state_dict(model.state_dict())
        entries = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
        torch.save({**entries, "pytorch-lightning_version": lightning.__version__}, path)

    def calculate(self, path):
        return (
            "from nequip.integrations.ase import NequIPCalculator\n"
            f"calculator = NequIPCalculator._from_saved_model({str(path)!r}, chemical_species_to_atom_type_map=True)"
        )

    def exported(self, model, structures):
        """The graph that nequip-compile compiles."""
        fields = ["pos", "atom_types", "edge_index", "batch", "num_atoms"]
        weights = dict(model.model.named_parameters()) | dict(model.model.named_buffers())
        wrapped = ListInputOutputStateDictWrapper(model.model, fields, OUTPUTS, list(weights))
        traced = nequip_make_fx(wrapped, self._fields(model, structures, fields), fields, list(weights.values()))
        return lambda others: self._output(traced(*self._fields(model, others, fields).values(), *weights.values()))

    def _fields(self, model, structures, fields):
        data = self.batch(model, structures)
        return {name: data[name] for name in fields}
