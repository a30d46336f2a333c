"""Cumulenes C_nH4 labelled with GFN2-xTB: data for the question whether a force field sees the twist of two far CH2 groups.

The ends of C9H4 are 10 Å apart, three times the usual cutoff of a local model, and yet their twist is worth 0.85 eV. Angles are
in radians, lengths in Å, energies in eV, forces in eV/Å.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import Progress

if TYPE_CHECKING:
    from ase import Atoms

METHOD = "GFN2-xTB"
ENERGY, FORCES, TWIST = "REF_energy", "REF_forces", "twist"
DISPLACEMENT = 0.03
FILES = ("train.xyz", "test.xyz", "scan.xyz")


@dataclass(frozen=True)
class Shape:
    """The internal coordinates of a cumulene other than its twist; the two halves of the molecule are alike.

    Args:
        bonds: C-C lengths (Å) from an end to the middle, ceil((n - 1) / 2) of them for n carbons.
        ch: C-H length, Å.
        hcc: H-C-C angle, radians.
    """

    bonds: tuple[float, ...]
    ch: float = 1.08
    hcc: float = math.radians(121.5)

    @classmethod
    def guess(cls, num_carbons: int = 9) -> Shape:
        """A start for `relax`: all C-C bonds 1.28 Å."""
        return cls(bonds=(1.28,) * (num_carbons // 2))

    @classmethod
    def from_vector(cls, vector: np.ndarray | list[float]) -> Shape:
        """Inverse of `vector`."""
        *bonds, ch, hcc = (float(value) for value in vector)
        return cls(tuple(bonds), ch, hcc)

    @property
    def vector(self) -> np.ndarray:
        """bonds, ch, hcc as one array (num_bonds + 2,)."""
        return np.array([*self.bonds, self.ch, self.hcc])


def cumulene(twist: float, shape: Shape | None = None, num_carbons: int = 9) -> Atoms:
    """C_nH4 along z, its two CH2 planes at an angle `twist` (radians); carbons first, then two H of the lower and upper end."""
    ase = require("ase", "data")
    shape = shape or Shape.guess(num_carbons)
    if len(shape.bonds) != num_carbons // 2:
        raise ValueError(f"{num_carbons} carbons need {num_carbons // 2} unique bond lengths, got {len(shape.bonds)}.")
    return ase.Atoms(f"C{num_carbons}H4", _positions(twist, shape, num_carbons), info={TWIST: float(twist)})


def label(atoms: Atoms) -> Atoms:
    """A copy of `atoms` with energy (info REF_energy, eV) and forces (arrays REF_forces, eV/Å); about 10 ms for C9H4."""
    calculator = require("tblite.ase", "data").TBLite
    result = atoms.copy()
    atoms = atoms.copy()
    atoms.calc = calculator(method=METHOD, verbosity=0)
    with one_thread():
        result.info[ENERGY] = float(atoms.get_potential_energy())
        result.arrays[FORCES] = atoms.get_forces()
    return result


def relax(twist: float, shape: Shape, num_carbons: int = 9) -> Shape:
    """The shape of lowest energy at fixed twist."""
    from scipy.optimize import minimize

    def energy_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        atoms = label(cumulene(twist, Shape.from_vector(vector), num_carbons))
        return atoms.info[ENERGY], -_jacobian(twist, vector, num_carbons) @ atoms.arrays[FORCES].ravel()

    result = minimize(energy_and_gradient, shape.vector, jac=True, method="BFGS", options={"gtol": 1e-4})
    if np.abs(result.jac).max() > 1e-2:
        raise RuntimeError(f"relaxation at twist {math.degrees(twist):.1f}° did not converge: {result.message}")
    return Shape.from_vector(result.x)


def relaxed_scan(
    num_twists: int = 13, num_carbons: int = 9, progress: Progress | None = None
) -> tuple[list[Atoms], list[Shape]]:
    """Labelled structures and shapes relaxed at `num_twists` twists from 0 to 90 degrees."""
    shape, structures, shapes = Shape.guess(num_carbons), [], []
    for twist in _track(np.linspace(0, math.pi / 2, num_twists), "relaxed torsion scan", progress):
        shape = relax(twist, shape, num_carbons)
        shapes.append(shape)
        structures.append(label(cumulene(twist, shape, num_carbons)))
    return structures, shapes


def sample(shapes: list[Shape], num: int, seed: int | np.random.SeedSequence, num_carbons: int = 9) -> list[Atoms]:
    """Unlabelled structures: twist uniform in [0, π], shape as relaxed there, Gaussian displacements, random orientation.

    `shapes` are those of a scan from 0 to 90 degrees; E(twist) = E(π - twist) serves the rest.
    """
    rng = np.random.default_rng(seed)
    scanned = np.linspace(0, math.pi / 2, len(shapes))
    columns = np.array([shape.vector for shape in shapes]).T
    structures = []
    for _ in range(num):
        twist = rng.uniform(0, math.pi)
        folded = min(twist, math.pi - twist)
        atoms = cumulene(twist, Shape.from_vector([np.interp(folded, scanned, column) for column in columns]), num_carbons)
        moved = atoms.positions + rng.normal(scale=DISPLACEMENT, size=atoms.positions.shape)
        atoms.positions = moved @ _random_rotation(rng).T
        structures.append(atoms)
    return structures


@dataclass(frozen=True)
class DataSpec:
    """What decides the data of `make`; kept beside the files as data.json."""

    seed: int = 0
    num_train: int = 300
    num_test: int = 60
    num_twists: int = 13
    num_carbons: int = 9
    displacement: float = DISPLACEMENT
    method: str = METHOD


def make(folder: Path | str, seed: int = 0, num_train: int = 300, num_test: int = 60, num_twists: int = 13) -> Path:
    """Writes train.xyz, test.xyz and scan.xyz (extended XYZ, keys REF_energy and REF_forces) unless they are there already.

    Files made with other settings are replaced.
    """
    spec, folder = DataSpec(seed, num_train, num_test, num_twists), Path(folder)
    stamp = folder / "data.json"
    if stamp.exists() and json.loads(stamp.read_text()) == asdict(spec) and all((folder / name).exists() for name in FILES):
        return folder
    write = require("ase.io", "data").write
    folder.mkdir(parents=True, exist_ok=True)
    with Progress(transient=True) as progress:
        scan, shapes = relaxed_scan(num_twists, progress=progress)
        # separate streams: the test set stays the same when the training set grows
        seeds = np.random.SeedSequence(seed).spawn(2)
        train, test = (
            [label(atoms) for atoms in _track(sample(shapes, num, stream), f"{METHOD}, {name} set", progress)]
            for name, num, stream in zip(("training", "test"), (num_train, num_test), seeds, strict=True)
        )
    for name, structures in zip(FILES, (train, test, scan), strict=True):
        write(folder / name, structures, format="extxyz")
    stamp.write_text(json.dumps(asdict(spec), indent=2) + "\n")
    return folder


def read(folder: Path | str, name: str) -> list[Atoms]:
    """The structures of `folder`/`name`.xyz, for example `read(folder, "scan")`."""
    return require("ase.io", "data").read(Path(folder) / f"{name}.xyz", index=":")


def twist_of(atoms: Atoms) -> float:
    """Angle (radians, in [0, π/2]) between the two H-H axes, seen along the chain; `atoms` ordered as by `cumulene`."""
    carbons = atoms.positions[atoms.numbers == 6]
    hydrogens = atoms.positions[atoms.numbers == 1]
    axis = (carbons[-1] - carbons[0]) / np.linalg.norm(carbons[-1] - carbons[0])
    across = hydrogens[::2] - hydrogens[1::2]
    across = across - (across @ axis)[:, None] * axis
    low, high = across / np.linalg.norm(across, axis=1, keepdims=True)
    return math.atan2(np.linalg.norm(np.cross(low, high)), abs(low @ high))


def _positions(twist: float, shape: Shape, num_carbons: int) -> np.ndarray:
    """(num_carbons + 4, 3) Å."""
    gaps = [shape.bonds[min(i, num_carbons - 2 - i)] for i in range(num_carbons - 1)]
    z = np.concatenate([[0.0], np.cumsum(gaps)])
    z -= z.mean()
    positions = [(0.0, 0.0, height) for height in z]
    across, along = shape.ch * math.sin(shape.hcc), -shape.ch * math.cos(shape.hcc)
    for side, end in ((-1, z[0]), (1, z[-1])):
        x, y = across * math.cos(side * twist / 2), across * math.sin(side * twist / 2)
        positions += [(x, y, end + side * along), (-x, -y, end + side * along)]
    return np.array(positions)


def _jacobian(twist: float, vector: np.ndarray, num_carbons: int, step: float = 1e-5) -> np.ndarray:
    """d positions / d shape, (num_parameters, 3 num_atoms), by central differences of the geometry alone."""
    moved = [
        [_positions(twist, Shape.from_vector(vector + sign * step * unit), num_carbons) for sign in (1, -1)]
        for unit in np.eye(len(vector))
    ]
    return np.array([((plus - minus) / (2 * step)).ravel() for plus, minus in moved])


def _random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix, uniform over SO(3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_quat(rng.normal(size=4)).as_matrix()


def _track(items: Iterable[Any], description: str, progress: Progress | None) -> Iterable[Any]:
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
        raise ImportError(f"this study needs {module} ({error}); install it with: pip install efa-addons[{extra}]") from error
