"""Errors and curves of a trained model on the evaluation sets of a study. Energies eV, forces eV/Å."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efa_addons.studies import cumulene, sources
from efa_addons.studies.common import one_thread
from efa_addons.studies.record import Profile

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator


def evaluate(calculator: Calculator, data: Path) -> tuple[dict[str, dict[str, float]], dict[str, Profile]]:
    """Metrics of every evaluation set in a folder of data, and profiles of those that are scans; names as in `Record`."""
    metrics, profiles = {}, {}
    scans = sources.scans(data)
    for name in sources.evaluation_sets(data):
        structures = cumulene.read(data, name)
        energies, forces = predict(calculator, structures)
        metrics[name] = errors(structures, energies, forces)
        if name in scans:
            scan = scans[name]
            profiles[name] = profile(scan, [atoms.info[scan.x] for atoms in structures], structures, energies)
    return metrics, profiles


def predict(calculator: Calculator, structures: Sequence[Atoms]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Energies (eV) and forces (eV/Å) of structures, one by one."""
    energies, forces = [], []
    with one_thread():
        for atoms in structures:
            calculator.calculate(atoms, properties=["energy", "forces"])
            energies.append(float(calculator.results["energy"]))
            forces.append(np.array(calculator.results["forces"]))
    return np.array(energies), forces


def profile(scan: sources.Scan, x: Sequence[float], structures: Sequence[Atoms], energies: np.ndarray) -> Profile:
    """A model's energies (eV) of labelled structures that lie at `x` of a scan."""
    reference = [atoms.info[cumulene.ENERGY] for atoms in structures]
    points, found, labels = (tuple(map(float, values)) for values in (x, energies, reference))
    return Profile(asdict(scan), points, found, labels)


def errors(structures: Sequence[Atoms], energies: np.ndarray, forces: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean and root-mean-square errors: energies per structure and per atom, forces over all components."""
    sizes = np.array([len(atoms) for atoms in structures])
    energy = energies - np.array([atoms.info[cumulene.ENERGY] for atoms in structures])
    force = np.concatenate([found - atoms.arrays[cumulene.FORCES] for found, atoms in zip(forces, structures, strict=True)])
    kinds = {"energy_{}": energy, "energy_{}_per_atom": energy / sizes, "force_{}": force}
    found = {name.format("mae"): float(np.abs(error).mean()) for name, error in kinds.items()}
    found |= {name.format("rmse"): float(np.sqrt((error**2).mean())) for name, error in kinds.items()}
    return {**found, "num": float(len(structures))}
