"""Errors and curves of a trained model on the evaluation sets of a study. Energies eV, forces eV/Å."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from efa_addons.studies import cumulene, sources
from efa_addons.studies.record import Profile
from efa_addons.studies.results import predict

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
            x = tuple(float(atoms.info[scan.x]) for atoms in structures)
            reference = tuple(float(atoms.info[cumulene.ENERGY]) for atoms in structures)
            profiles[name] = Profile(asdict(scan), x, tuple(map(float, energies)), reference)
    return metrics, profiles


def errors(structures: Sequence[Atoms], energies: np.ndarray, forces: Sequence[np.ndarray]) -> dict[str, float]:
    """Mean and root-mean-square errors: energies per structure and per atom, forces over all components."""
    sizes = np.array([len(atoms) for atoms in structures])
    energy = energies - np.array([atoms.info[cumulene.ENERGY] for atoms in structures])
    force = np.concatenate([found - atoms.arrays[cumulene.FORCES] for found, atoms in zip(forces, structures, strict=True)])
    kinds = {"energy_{}": energy, "energy_{}_per_atom": energy / sizes, "force_{}": force}
    found = {name.format("mae"): float(np.abs(error).mean()) for name, error in kinds.items()}
    found |= {name.format("rmse"): float(np.sqrt((error**2).mean())) for name, error in kinds.items()}
    return {**found, "num": float(len(structures))}
