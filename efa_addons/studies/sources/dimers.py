"""Ions and polar molecules pulled apart, labelled with GFN2-xTB: tails of r^-1, r^-2 and r^-3.

The parts are rigid, each relaxed alone, and energies are above theirs. F-, Cl- and NH4+ are the ions, but never opposite ones
together: GFN2-xTB moves a fraction of an electron from one to the other at distances above 7 Å. Na+ and Li+ are no choice,
either: from 5 to 7 Å on it finds no self-consistent charges for them beside water, HF or ammonia.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from efa_addons.errors import EFAError, unknown_names
from efa_addons.studies.common import ENERGY, label, random_rotation, relaxed, require
from efa_addons.studies.sources.base import Data, Scan, draw

if TYPE_CHECKING:
    from ase import Atoms

DISTANCE = "distance"
CONTACT = 1.7  # Å, the least between atoms of the two parts
TRIES = 10_000  # for a structure


@dataclass(frozen=True)
class Part:
    """An ion or a molecule of one heavy atom, the first, and hydrogens; positions are roughly right, Å.

    The dipole points along +z, and the heavy atom is at the origin.
    """

    symbols: str
    charge: int
    positions: tuple[tuple[float, float, float], ...]


CORNER = 1.03 / 3**0.5
PARTS = {
    "f": Part("F", -1, ((0, 0, 0),)),
    "cl": Part("Cl", -1, ((0, 0, 0),)),
    "nh4": Part("NH4", 1, ((0, 0, 0), *((CORNER * x, CORNER * y, CORNER * x * y) for x in (1, -1) for y in (1, -1)))),
    "hf": Part("FH", 0, ((0, 0, 0), (0, 0, 0.92))),
    "h2o": Part("OH2", 0, ((0, 0, 0), (0.76, 0, 0.59), (-0.76, 0, 0.59))),
}
# name -> the two parts; on a scan the second is at +z of the first
DIMERS = {
    "f_f": ("f", "f"),
    "nh4_h2o": ("nh4", "h2o"),
    "cl_hf": ("cl", "hf"),
    "h2o_h2o": ("h2o", "h2o"),
    "hf_hf": ("hf", "hf"),
}


def make(
    seed: int = 0,
    dimers: Sequence[str] = tuple(DIMERS),
    num_train: int = 50,
    num_valid: int = 8,
    num_test: int = 20,
    distances: Sequence[float] = (2.5, 15.0),
    num_scan: int = 25,
    tail: Sequence[float] = (7.0, 14.0),
) -> Data:
    """So many structures of each of the dimers, at distances (of heavy atoms, Å) uniform in a range and in any orientation.

    `scan_NAME` runs from 3 Å to the end of the range with dipoles along the axis, head to tail; exponents are fitted to `tail`.
    """
    unknown = [name for name in dimers if name not in DIMERS]
    if unknown:
        raise unknown_names("dimer", unknown, DIMERS)
    sets: dict[str, list[Atoms]] = {"train": [], "valid": [], "test": []}
    parts = {name: relaxed_part(name) for name in sorted({part for dimer in dimers for part in DIMERS[dimer]})}
    scan = Scan(DISTANCE, "distance (Å)", align="last", analysis="power_law", tail=(tail[0], tail[1]))
    for name in dimers:
        pair = _Pair(parts[DIMERS[name][0]], parts[DIMERS[name][1]], (distances[0], distances[1]))
        numbers = {f"train_{name}": num_train, f"valid_{name}": num_valid, f"test_{name}": num_test}
        drawn = draw(pair.sample, seed, **numbers)
        sets |= {kind: sets[kind] + drawn[f"{kind}_{name}"] for kind in ("train", "valid", "test")}
        sets[f"scan_{name}"] = [pair.head_to_tail(r) for r in np.linspace(3.0, distances[1], num_scan)]
    return Data(sets, {f"scan_{name}": scan for name in dimers})


def relaxed_part(name: str) -> Atoms:
    """A part of lowest energy, labelled, with its total charge in info."""
    part = PARTS[name]

    def build(flat: np.ndarray) -> Atoms:
        return require("ase", "data").Atoms(part.symbols, flat.reshape(-1, 3), info={"charge": part.charge})

    start = np.array(part.positions, dtype=float).ravel()
    atoms = build(relaxed(build, start, name, part.charge) if len(part.positions) > 1 else start)
    atoms.positions -= atoms.positions[0]
    return label(atoms, part.charge)


@dataclass(frozen=True, eq=False)
class _Pair:
    first: Atoms
    second: Atoms
    distances: tuple[float, float]

    def sample(self, rng: np.random.Generator) -> Atoms:
        """In any orientation, the parts not nearer than CONTACT; EFAError: they are at any of the distances."""
        for _ in range(TRIES):
            turned = [part.positions @ random_rotation(rng).T for part in (self.first, self.second)]
            away = rng.normal(size=3)
            distance = rng.uniform(*self.distances)
            turned[1] += distance * away / np.linalg.norm(away)
            if np.linalg.norm(turned[0][:, None] - turned[1], axis=-1).min() > CONTACT:
                return self._labelled(turned[0], turned[1], distance)
        raise EFAError(
            f"{self.first.symbols} and {self.second.symbols} {' to '.join(map(str, self.distances))} Å apart have atoms nearer "
            f"than {CONTACT} Å in {TRIES} of {TRIES} orientations: take larger distances."
        )

    def head_to_tail(self, distance: float) -> Atoms:
        """With both dipoles along +z, or the molecule's along -z beside an anion in front of it."""
        sign = -1.0 if self.first.info["charge"] < 0 else 1.0
        return self._labelled(self.first.positions, sign * self.second.positions + [0, 0, distance], distance)

    def _labelled(self, first: np.ndarray, second: np.ndarray, distance: float) -> Atoms:
        symbols = [*self.first.symbols, *self.second.symbols]
        atoms = require("ase", "data").Atoms(symbols, np.vstack([first, second]), info={DISTANCE: float(distance)})
        charge = self.first.info["charge"] + self.second.info["charge"]
        return label(atoms, charge, self.first.info[ENERGY] + self.second.info[ENERGY])
