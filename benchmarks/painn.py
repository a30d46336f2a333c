"""What EFA costs in PaiNN: `python -m benchmarks.painn` times PaiNN with EFA over PaiNN without, side by side in one run.

Times are process times of one thread, the least over alternating repetitions. Memory is that of all tensors
alive at the worst moment. Gate: a freshly inserted EFA must not change the energy, or nothing is timed.
"""

from __future__ import annotations

import torch
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
from schnetpack.model import NeuralNetworkPotential
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import PaiNN

from benchmarks.common import clusters, columns, comparison, largest_distance, options, show, task
from efa_addons import EFAConfig
from efa_addons.hosts.painn import insert_efa
from efa_addons.hosts.painn.describe import batch_of

CUTOFF = 5.0  # Å


def stock_model(features: int) -> torch.nn.Module:
    """A PaiNN of three interactions with `features` scalars and as many vectors, and energy and forces as its outputs."""
    painn = PaiNN(
        n_atom_basis=features,
        n_interactions=3,
        radial_basis=GaussianRBF(n_rbf=20, cutoff=CUTOFF),
        cutoff_fn=CosineCutoff(CUTOFF),
    )
    return NeuralNetworkPotential(painn, [PairwiseDistances()], [Atomwise(n_in=features, output_key="energy"), Forces()])


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--features", type=int, default=64)
    args = parser.parse_args()
    rows = []
    for structures in clusters(args.quick):
        stock = stock_model(4 if args.quick else args.features)
        with_efa = insert_efa(stock, EFAConfig(max_length=1.2 * largest_distance(structures)))
        batch = batch_of(stock, structures)
        energies = [model(dict(batch))["energy"] for model in (stock, with_efa)]
        if not torch.equal(*energies):
            raise SystemExit(f"gate: inserting EFA changed the energy, {energies[0].tolist()} to {energies[1].tolist()}")
        for name, training in (("inference", False), ("training step", True)):
            models = [model.train(training) for model in (stock, with_efa)]
            tasks = [task(model, batch, training, "energy") for model in models]
            found = comparison(tasks, 1 if args.quick else args.repeats)
            rows.append([f"{len(structures)} x {len(structures[0])} atoms", name, *found])
    show("painn", f"{args.features} features, float32, one thread", columns("PaiNN"), rows, args)


if __name__ == "__main__":
    main()
