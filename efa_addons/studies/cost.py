"""Time and memory of a trained model against the number of atoms, through its ASE calculator: energy and forces."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from efa_addons.config import check_types
from efa_addons.errors import EFAError
from efa_addons.memory import PeakMemory
from efa_addons.nn.replay import CALLS
from efa_addons.studies.common import one_thread, require

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

SPACING = 1.6  # Å, about the density of a molecule


@dataclass(frozen=True)
class Cost:
    """What to measure.

    Args:
        num_atoms: of the droplets, in ascending order.
        repeats: calls of which the fastest counts, after one that does not (on a GPU, until blocks of EFA are recorded).
    """

    num_atoms: tuple[int, ...] = (100, 300, 1000, 3000)
    repeats: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        if not self.num_atoms or min(self.num_atoms) < 1 or self.repeats < 1:
            raise EFAError(f"cost: num_atoms and repeats must be 1 or more, got {list(self.num_atoms)} and {self.repeats}.")


def measure(calculator: Calculator, settings: Cost, elements: Sequence[str], device: str = "cpu") -> dict[str, Any]:
    """Calls the calculator, which is on `device`, on droplets of a model's elements.

    Returns:
        num_atoms, up to where a GPU's memory ends; seconds of one call with neighbor lists, process time on one thread of a
        CPU, wall time on a GPU; memory, MiB of all tensors that were made in a call and alive at its worst moment.
    """
    found: dict[str, Any] = {"num_atoms": [], "seconds": [], "memory": []}
    with one_thread():
        for num_atoms in settings.num_atoms:
            atoms = droplet(num_atoms, elements)
            try:
                with PeakMemory() as memory:
                    _call(calculator, atoms, device)
                for _ in range(0 if device == "cpu" else CALLS + 1):  # until blocks are recorded, in a call that does not count
                    _call(calculator, atoms, device)
                seconds = [_call(calculator, atoms, device) for _ in range(settings.repeats)]
            except RuntimeError as error:
                # in TorchScript, and on a CPU, it is no torch.OutOfMemoryError
                if not isinstance(error, torch.OutOfMemoryError) and "memory" not in str(error):
                    raise
                print(f"cost: {num_atoms} atoms and more are left out: {error}")
                break
            for key, value in (("num_atoms", num_atoms), ("seconds", min(seconds)), ("memory", memory.peak / 2**20)):
                found[key].append(value)
    return found


def droplet(num_atoms: int, elements: Sequence[str], seed: int = 0) -> Atoms:
    """Atoms of these elements, at random, on a rattled cubic lattice: as compact as they can be."""
    rng = np.random.default_rng(seed)
    symbols = rng.choice(list(elements), num_atoms).tolist()
    side = int(np.ceil(num_atoms ** (1 / 3))) + 2
    lattice = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3) - (side - 1) / 2
    nearest = lattice[np.argsort(np.linalg.norm(lattice, axis=1), kind="stable")[:num_atoms]]
    positions = SPACING * nearest + rng.normal(scale=0.1, size=nearest.shape)
    return require("ase", "data").Atoms(symbols, positions)


def _call(calculator: Calculator, atoms: Atoms, device: str) -> float:
    """Seconds of one call; it ends with energies and forces on the CPU, so that nothing is left for a GPU to do."""
    now = time.process_time if device == "cpu" else time.perf_counter
    calculator.reset()  # SchNetPack's remembers what it has calculated
    start = now()
    calculator.calculate(atoms, properties=["energy", "forces"])
    return now() - start
