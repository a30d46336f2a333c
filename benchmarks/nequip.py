"""What EFA costs in NequIP: `python -m benchmarks.nequip` times NequIP with EFA over NequIP without, side by side in one run.

Times are process times of one thread, the least over alternating repetitions. Memory is that of all tensors
alive at the worst moment. Gate: a freshly inserted EFA must not change the energy, or nothing is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from ase import Atoms
from nequip.data import AtomicDataDict, from_ase
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper, NeighborListTransform
from nequip.model import NequIPGNNModel
from nequip.utils.global_state import set_global_state

from benchmarks.common import clusters, columns, comparison, largest_distance, options, show, task
from efa_addons import EFAConfig
from efa_addons.hosts.nequip import insert_efa

TYPES = ["H", "C"]
CUTOFF = 5.0  # Å


def stock_model(features: int) -> torch.nn.Module:
    """A NequIP GNN of three layers with `features` features of degree 0 and 1 and of both parities, its defaults otherwise."""
    return NequIPGNNModel(
        seed=0,
        model_dtype="float32",
        type_names=TYPES,
        r_max=CUTOFF,
        num_layers=3,
        l_max=1,
        parity=True,
        num_features=features,
        radial_mlp_depth=1,
        radial_mlp_width=64,
        avg_num_neighbors=20.0,
        per_type_energy_shifts={"H": 0.0, "C": 0.0},
        per_type_energy_scales=1.0,
    )


def batch_of(structures: Sequence[Atoms]) -> AtomicDataDict.Type:
    """What NequIP's data loader makes of structures; with a box, as its stress divides by the volume."""
    mapper = ChemicalSpeciesToAtomTypeMapper(TYPES, {name: name for name in TYPES})
    neighbors = NeighborListTransform(r_max=CUTOFF)
    boxed = [atoms.copy() for atoms in structures]
    for atoms in boxed:
        atoms.center(vacuum=10.0)
    return AtomicDataDict.batched_from_list([neighbors(mapper(from_ase(atoms))) for atoms in boxed])


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--features", type=int, default=32)
    args = parser.parse_args()
    set_global_state()
    rows = []
    for structures in clusters(args.quick):
        stock = stock_model(4 if args.quick else args.features)
        with_efa = insert_efa(deepcopy(stock), EFAConfig(max_length=1.2 * largest_distance(structures)))
        batch = batch_of(structures)
        energies = [model(dict(batch))["total_energy"] for model in (stock, with_efa)]
        if not torch.equal(*energies):
            raise SystemExit(f"gate: inserting EFA changed the energy, {energies[0].tolist()} to {energies[1].tolist()}")
        for name, training in (("inference", False), ("training step", True)):
            models = [model.train(training) for model in (stock, with_efa)]
            tasks = [task(model, batch, training, "total_energy") for model in models]
            found = comparison(tasks, 1 if args.quick else args.repeats)
            rows.append([f"{len(structures)} x {len(structures[0])} atoms", name, *found])
    show("nequip", f"{args.features} features, float32, one thread", columns("NequIP"), rows, args)


if __name__ == "__main__":
    main()
