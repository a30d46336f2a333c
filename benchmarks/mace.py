"""What EFA costs in MACE: `python -m benchmarks.mace` times MACE with EFA over MACE without, side by side in one run.

Times are process times of one thread, the least over alternating repetitions. Memory is that of all tensors
alive at the worst moment. Gate: a freshly inserted EFA must not change the energy, or nothing is timed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms
from mace import modules as mace_modules

from benchmarks.common import least, options, show
from efa_addons import EFAConfig
from efa_addons._e3nn import Irreps
from efa_addons.hosts.mace import insert_efa
from efa_addons.hosts.mace.probe import batch_of
from efa_addons.memory import PeakMemory

SPACING = 1.6  # Å, about the density of a molecule


def cluster(num_atoms: int, seed: int) -> Atoms:
    """Carbon and hydrogen on a rattled cubic lattice, as compact as a droplet."""
    rng = np.random.default_rng(seed)
    side = int(np.ceil(num_atoms ** (1 / 3))) + 2
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3) - (side - 1) / 2
    nearest = grid[np.argsort(np.linalg.norm(grid, axis=1), kind="stable")[:num_atoms]]
    return Atoms(numbers=rng.choice([1, 6], num_atoms), positions=SPACING * nearest + rng.normal(scale=0.1, size=nearest.shape))


def stock_model(channels: int) -> torch.nn.Module:
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
        correlation=3,
        radial_type="bessel",
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def task(model: torch.nn.Module, batch: dict[str, torch.Tensor], training: bool) -> Callable[[], None]:
    """One inference (energy and forces), or one training step (loss of both, backward)."""

    def run() -> None:
        out = model({key: value.clone() for key, value in batch.items()}, training=training)
        if training:
            ((out["energy"] ** 2).sum() + (out["forces"] ** 2).sum()).backward()

    return run


def peak_memory(run: Callable[[], None]) -> int:
    """Bytes of all tensors alive at the worst moment of a task; parameters, which are there before it, are not in it."""
    with PeakMemory() as memory:
        run()
    return memory.peak


def main() -> None:
    parser = options(__doc__, repeats=5)
    parser.add_argument("--channels", type=int, default=64)
    args = parser.parse_args()
    sizes = [(4, 2), (20, 1)] if args.quick else [(20, 16), (1000, 1)]
    rows = []
    for num_atoms, num_graphs in sizes:
        structures = [cluster(num_atoms, seed) for seed in range(num_graphs)]
        length = max(atoms.get_all_distances().max() for atoms in structures)
        stock = stock_model(4 if args.quick else args.channels)
        with_efa = insert_efa(stock, EFAConfig(max_length=1.2 * float(length)))
        batch = batch_of(stock, structures)
        energies = [
            model({k: v.clone() for k, v in batch.items()}, compute_force=False)["energy"] for model in (stock, with_efa)
        ]
        if not torch.equal(*energies):
            raise SystemExit(f"gate: inserting EFA changed the energy, {energies[0].tolist()} to {energies[1].tolist()}")
        for name, training in (("inference", False), ("training step", True)):
            tasks = [task(model, batch, training) for model in (stock, with_efa)]
            plain, efa = least(tasks, 1 if args.quick else args.repeats)
            peaks = [peak_memory(run) / 2**20 for run in tasks]
            times = [f"{plain:.3f}", f"{efa:.3f}", f"{efa / plain:.2f}"]
            memory = [f"{peaks[0]:.0f}", f"{peaks[1]:.0f}", f"{peaks[1] / peaks[0]:.2f}"]
            rows.append([f"{num_graphs} x {num_atoms} atoms", name, *times, *memory])
    head = ["structures", "task", "MACE (s)", "+ EFA (s)", "time ratio", "MACE (MiB)", "+ EFA (MiB)", "memory ratio"]
    show("mace", f"{args.channels} channels, float32, one thread", head, rows, args)


if __name__ == "__main__":
    main()
