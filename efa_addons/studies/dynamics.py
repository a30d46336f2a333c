"""Molecular dynamics at constant energy: does a trained model conserve it? Energies eV/atom, times ps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from efa_addons.config import check_types
from efa_addons.errors import EFAError
from efa_addons.studies import common

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator

POINTS = 200  # of the curve that is kept
FELL_APART = 3.0  # times its first extent: then it is no longer one molecule


@dataclass(frozen=True)
class Dynamics:
    """A run of molecular dynamics from a structure of an evaluation set.

    Args:
        set: the evaluation set; its structure `index` is where it begins.
        picoseconds: duration.
        timestep: fs.
        temperature: K, of the vibrations as it begins, from Maxwell-Boltzmann velocities; the whole neither moves nor turns.
        seeds: of the study, those whose models run; seed 0 alone unless given.
        hosts, variants: of the study, those whose models run; none given: all.
    """

    set: str = "test"
    index: int = 0
    picoseconds: float = 10.0
    timestep: float = 0.5
    temperature: float = 300.0
    seeds: tuple[int, ...] = (0,)
    hosts: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("picoseconds", "timestep", "temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise EFAError(f"dynamics: {name} must be positive, got {getattr(self, name)}.")

    def wanted(self, host: str, variant: str, seed: int) -> bool:
        """Whether the model of this host, variant and seed runs."""
        return seed in self.seeds and host in (self.hosts or (host,)) and variant in (self.variants or (variant,))


def nve(calculator: Calculator, atoms: Atoms, settings: Dynamics) -> dict[str, Any]:
    """Velocity Verlet at constant energy.

    Returns:
        time (ps) and energy (potential and kinetic, eV/atom, above the first) of some points; drift, the slope of a straight
        line through all steps (eV/atom/ps); spread, the standard deviation around it (eV/atom); temperature, the mean of the
        second half (K, of vibrations: the whole neither moves nor turns); fell_apart, the time (ps) at which the structure
        did, or null.
    """
    md = common.require("ase.md.velocitydistribution", "data")
    verlet = common.require("ase.md.verlet", "data").VelocityVerlet
    units = common.require("ase.units", "data")
    atoms = atoms.copy()
    atoms.calc = calculator
    rotations = int((atoms.get_moments_of_inertia() > 1e-6).sum())  # of a line two
    share = 3 * len(atoms) / max(1, 3 * len(atoms) - 3 - rotations)  # ASE's temperature is that of all degrees of freedom
    md.MaxwellBoltzmannDistribution(atoms, temperature_K=settings.temperature, rng=np.random.default_rng(0))
    md.Stationary(atoms)
    with np.errstate(invalid="ignore"):  # linear molecules have a moment of inertia of zero
        md.ZeroRotation(atoms)
    # what was drawn is hotter or colder by chance, and ASE has put the energy of the whole's motion into the vibrations
    atoms.set_momenta(atoms.get_momenta() * math.sqrt(settings.temperature / (share * atoms.get_temperature())))
    steps = max(2, round(1000 * settings.picoseconds / settings.timestep))
    extent = atoms.get_all_distances().max()
    energies, temperatures, fell_apart = [], [], None
    dynamics = verlet(atoms, timestep=settings.timestep * units.fs)
    with common.one_thread():
        for step, _ in enumerate(dynamics.irun(steps)):
            energies.append(atoms.get_total_energy() / len(atoms))
            temperatures.append(share * atoms.get_temperature())
            if not np.isfinite(energies[-1]) or atoms.get_all_distances().max() > FELL_APART * extent:
                fell_apart = step * settings.timestep / 1000
                break
    energy = np.array(energies) - energies[0]
    time = np.arange(len(energy)) * settings.timestep / 1000
    finite = np.isfinite(energy)
    slope, offset = np.polyfit(time[finite], energy[finite], 1) if finite.sum() > 1 else (float("nan"), 0.0)
    shown = np.unique(np.linspace(0, len(energy) - 1, POINTS).astype(int))
    return {
        "time": time[shown].tolist(),
        "energy": energy[shown].tolist(),
        "drift": float(slope),
        "spread": float(np.std(energy[finite] - slope * time[finite] - offset)),
        "temperature": float(np.mean(temperatures[len(temperatures) // 2 :])),
        "fell_apart": fell_apart,
    }
