"""What the contract needs of a host: how to make, compute, optimise, save and export one of its models."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from ase import Atoms
from host_support import fresh_process
from torch import Tensor, nn

from efa_addons import EFAConfig


class Output(NamedTuple):
    """Of G structures with N atoms: energies (G,) in eV, forces (N, 3) in eV/Å, dE/dstrain (G, 3, 3) in eV."""

    energy: Tensor
    forces: Tensor
    by_strain: Tensor


class Case(ABC):
    """One host. Models have three layers, both parities where the host has them, and a cutoff of `CUTOFF`, in float64."""

    adapter: ModuleType  # efa_addons.hosts.<name>
    suffix: str  # of the host's own file
    too_slow_to_export: tuple[str, ...] = ()  # configurations that other tests of the host export
    any_element = False  # the host's models compute structures of every element
    size = 0.4  # of random weights in the blocks
    tolerance = 1e-9  # of the host without EFA, for symmetries in float64

    def __init__(self) -> None:
        self._kept: dict[tuple, nn.Module] = {}

    def stock(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """A small model of elements H, C, O, not trained, always the same one: not to be changed."""
        return self._keep((dtype,), lambda: self.build(dtype))

    def with_efa(self, config: EFAConfig, dtype: torch.dtype = torch.float64) -> nn.Module:
        """The stock model with EFA blocks of random weights, so that they say something: not to be changed."""
        return self._keep((dtype, config), lambda: self.randomized(self.adapter.insert_efa(self.stock(dtype), config, seed=1)))

    def randomized(self, model: nn.Module) -> nn.Module:
        """Random weights in the EFA blocks, in place."""
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in self.adapter.efa_parameters(model).items():
                if not name.endswith("frequencies"):
                    parameter.copy_(self.size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        return model

    def _keep(self, key: tuple, make: Callable[[], nn.Module]) -> nn.Module:
        """Made once: hosts take seconds to build a model."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @abstractmethod
    def build(self, dtype: torch.dtype) -> nn.Module:
        """The stock model."""

    def evaluate(
        self, model: nn.Module, structures: Sequence[Atoms], training: bool = False, order: int | None = None
    ) -> Output:
        """As the host's training does it; with `order` the neighbors stand in another (random) order."""
        return self.compute(model, self.batch(model, structures, order), training)

    @abstractmethod
    def batch(self, model: nn.Module, structures: Sequence[Atoms], order: int | None = None) -> dict[str, Tensor]:
        """What the model takes, on its device."""

    @abstractmethod
    def compute(self, model: nn.Module, batch: dict[str, Tensor], training: bool = False) -> Output:
        """Of a batch, which is left as it is but for what the host adds."""

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
        energy, forces = json.loads(fresh_process(code, path.parent).splitlines()[-1])
        return energy, torch.tensor(forces, dtype=torch.float64)


CUTOFF = 2.0  # Å
ELEMENTS = ("H", "C", "O")
SHIFTS = {"H": -1.0, "C": -2.0, "O": -3.0}  # energies of isolated atoms, eV
