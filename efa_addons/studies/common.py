"""What the demonstration and the sources of data share: labelled structures, GFN2-xTB. Energies eV, forces eV/Å, lengths Å."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from efa_addons.errors import EFAError, how_to_install

if TYPE_CHECKING:
    from ase import Atoms

METHOD = "GFN2-xTB"
ENERGY, FORCES = "REF_energy", "REF_forces"
MAX_SEED = 2**32 - 1  # that every host takes


def labelled(atoms: Atoms, energy: float, forces: np.ndarray) -> Atoms:
    """A copy of `atoms` with energy (info REF_energy) and forces (arrays REF_forces, (num_atoms, 3))."""
    result = atoms.copy()
    result.info[ENERGY] = float(energy)
    result.arrays[FORCES] = np.asarray(forces, dtype=float)
    return result


def label(atoms: Atoms, charge: int = 0, zero: float = 0.0) -> Atoms:
    """`labelled` by GFN2-xTB, with the molecule's total charge, and energies above `zero` (eV); about 10 ms for C9H4."""
    calculator = require("tblite.ase", "data").TBLite
    failed = require("ase.calculators.calculator", "data").CalculationFailed
    copy = atoms.copy()
    copy.calc = calculator(method=METHOD, charge=charge, verbosity=0)
    with one_thread():
        try:
            return labelled(atoms, copy.get_potential_energy() - zero, copy.get_forces())
        except failed as error:
            raise EFAError(
                f"{METHOD} finds no self-consistent charges for {atoms.get_chemical_formula()} of total charge {charge} "
                f"({error}). Parts far apart that exchange a fraction of an electron do that: take others, or nearer ones."
            ) from error


def relaxed(build: Callable[[np.ndarray], Atoms], start: np.ndarray, what: str, charge: int = 0) -> np.ndarray:
    """The coordinates at which `build(coordinates)` has its lowest GFN2-xTB energy, near `start`; EFAError: none was found."""
    from scipy.optimize import minimize

    def energy_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        atoms = label(build(vector), charge)
        return atoms.info[ENERGY], -_jacobian(build, vector) @ atoms.arrays[FORCES].ravel()

    result = minimize(energy_and_gradient, start, jac=True, method="BFGS", options={"gtol": 1e-4})
    if (left := np.abs(result.jac).max()) > 1e-2:
        raise EFAError(
            f"the relaxation of {what} by {METHOD} did not converge: {result.message} Its largest gradient is {left:.2g}, and "
            "should be below 0.01 (eV/Å). Take other structures."
        )
    return result.x


def _jacobian(build: Callable[[np.ndarray], Atoms], vector: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """d positions / d coordinates, (num_coordinates, 3 num_atoms), by central differences of the geometry alone."""
    moved = [[build(vector + sign * step * unit).positions for sign in (1, -1)] for unit in np.eye(len(vector))]
    return np.array([((plus - minus) / (2 * step)).ravel() for plus, minus in moved])


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix, uniform over SO(3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(rng.normal(size=4)).as_matrix()


def bars() -> Progress:
    """For `track`; nothing is written where no terminal shows it."""
    console = Console()
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def track(items: Iterable[Any], description: str, progress: Progress | None) -> Iterable[Any]:
    """`items`, with a bar in `progress` where there is one."""
    return items if progress is None else progress.track(items, description=description)


@contextmanager
def one_thread() -> Iterator[None]:
    """For 13 atoms OpenMP's waiting threads only cost, on a busy machine 30 times the work; tblite shares torch's OpenMP."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def require(module: str, extra: str) -> Any:
    """The imported module, or an ImportError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this needs {module} ({error}): {how_to_install(extra)}") from error
