"""What the contract needs of a host: how to make, compute, optimise, save and export one of its models."""

from __future__ import annotations

import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from ase import Atoms
from torch import Tensor, nn


class Output(NamedTuple):
    """Of G structures with N atoms: energies (G,) in eV, forces (N, 3) in eV/Å, dE/dstrain (G, 3, 3) in eV."""

    energy: Tensor
    forces: Tensor
    by_strain: Tensor


class Case(ABC):
    """One host. Models have three layers, both parities where the host has them, and a cutoff of `CUTOFF`, in float64."""

    adapter: ModuleType  # efa_addons.hosts.<name>
    suffix: str  # of the host's own file
    tolerance = 1e-9  # of the host without EFA, for symmetries in float64

    @abstractmethod
    def stock(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A small model of elements H, C, O, not trained, always the same."""

    @abstractmethod
    def evaluate(
        self, model: nn.Module, structures: Sequence[Atoms], training: bool = False, order: int | None = None
    ) -> Output:
        """As the host's training does it; with `order` the neighbors stand in another (random) order."""

    @abstractmethod
    def optimized(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters that the host's training gives to its optimizer."""

    @abstractmethod
    def save(self, model: nn.Module, path: Path) -> None:
        """Writes the host's own file."""

    @abstractmethod
    def calculate(self, path: Path) -> str:
        """Python code that sets `calculator` to the host's calculator for ASE, from the host's own file, in float64."""

    @abstractmethod
    def exported(self, model: nn.Module, structures: Sequence[Atoms]) -> Callable[[Sequence[Atoms]], Output]:
        """What the host exports for other programs; `structures` to trace with."""

    def calculated(self, path: Path, atoms: Atoms) -> tuple[float, Tensor]:
        """Energy and forces by the host's calculator in a fresh process that does not import efa_addons."""
        code = (
            f"import json\nfrom ase import Atoms\n{self.calculate(path)}\n"
            f"atoms = Atoms({str(atoms.symbols)!r}, {atoms.positions.tolist()!r})\natoms.calc = calculator\n"
            "print(json.dumps([float(atoms.get_potential_energy()), atoms.get_forces().tolist()]))"
        )
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=path.parent)
        assert done.returncode == 0, done.stderr[-4000:]
        energy, forces = json.loads(done.stdout.splitlines()[-1])
        return energy, torch.tensor(forces, dtype=torch.float64)


CUTOFF = 2.0  # Å
ELEMENTS = ("H", "C", "O")
SHIFTS = {"H": -1.0, "C": -2.0, "O": -3.0}  # energies of isolated atoms, eV
