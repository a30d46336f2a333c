"""What EFA costs in MACE: `python -m benchmarks.mace` times MACE with EFA over MACE without, side by side in one run.

Times are process times of one thread, the least over alternating repetitions. Memory is that of all tensors
alive at the worst moment. Gate: a freshly inserted EFA must not change the energy, or nothing is timed.
"""

from __future__ import annotations

import numpy as np
import torch
from mace import modules as mace_modules

from benchmarks.common import clusters, columns, comparison, largest_distance, options, show, task
from efa_addons import EFAConfig
from efa_addons._e3nn import Irreps
from efa_addons.hosts.mace import insert_efa
from efa_addons.hosts.mace.probe import batch_of


def stock_model(channels: int, correlation: int = 3) -> torch.nn.Module:
    """A ScaleShiftMACE of two layers with `channels` channels of degree 0 and 1, MACE's defaults otherwise."""
    blocks = mace_modules.interaction_classes
    return mace_modules.ScaleShiftMACE(
        r_max=5.0,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticResidualInteractionBlock"],
        num_interactions=2,
        num_elements=2,
        hidden_irreps=Irreps(f"{channels}x0e+{channels}x1o"),
        MLP_irreps=Irreps("16x0e"),
        gate=torch.nn.functional.silu,
        atomic_energies=np.zeros(2),
        avg_num_neighbors=20.0,
        atomic_numbers=[1, 6],
        correlation=correlation,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--channels", type=int, default=64)
    args = parser.parse_args()
    rows = []
    for structures in clusters(args.quick):
        stock = stock_model(4 if args.quick else args.channels)
        with_efa = insert_efa(stock, EFAConfig(max_length=1.2 * largest_distance(structures)))
        batch = batch_of(stock, structures)
        energies = [
            model({k: v.clone() for k, v in batch.items()}, compute_force=False)["energy"] for model in (stock, with_efa)
        ]
        if not torch.equal(*energies):
            raise SystemExit(f"gate: inserting EFA changed the energy, {energies[0].tolist()} to {energies[1].tolist()}")
        for name, training in (("inference", False), ("training step", True)):
            tasks = [task(model, batch, training, "energy", training=training) for model in (stock, with_efa)]
            found = comparison(tasks, 1 if args.quick else args.repeats)
            rows.append([f"{len(structures)} x {len(structures[0])} atoms", name, *found])
    show("mace", f"{args.channels} channels, float32, one thread", columns("MACE"), rows, args)


if __name__ == "__main__":
    main()
