"""Cumulenes of several lengths, labelled with GFN2-xTB: the barrier between two CH2 groups at the ends of a growing chain.

Each length's energies are above its own relaxed minimum, at a twist of 90 degrees.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from efa_addons.studies import cumulene
from efa_addons.studies.common import ENERGY, bars, label
from efa_addons.studies.sources.base import Data, Scan, draw

if TYPE_CHECKING:
    from ase import Atoms

DEGREES = "degrees"
SCAN = Scan(DEGREES, "twist (degrees)", analysis="barrier")


def make(
    seed: int = 0,
    num_carbons: Sequence[int] = (5, 7, 9),
    num_train: int = 80,
    num_valid: int = 10,
    num_test: int = 20,
    num_twists: int = 13,
) -> Data:
    """So many structures of each length, trained on together; `scan_N` is the relaxed scan of the twist, 0 to 90 degrees."""
    sets: dict[str, list[Atoms]] = {"train": [], "valid": [], "test": []}
    for length in num_carbons:
        with bars() as progress:
            scanned, shapes = cumulene.relaxed_scan(num_twists, length, progress)
        zero = scanned[-1].info[ENERGY]
        numbers = {f"train_{length}": num_train, f"valid_{length}": num_valid, f"test_{length}": num_test}
        drawn = draw(partial(_sample, shapes, length, zero), seed, **numbers)
        sets |= {name: sets[name] + drawn[f"{name}_{length}"] for name in ("train", "valid", "test")}
        sets[f"scan_{length}"] = [_above(atoms, zero) for atoms in scanned]
    return Data(sets, {f"scan_{length}": SCAN for length in num_carbons})


def _sample(shapes: list[cumulene.Shape], length: int, zero: float, rng: np.random.Generator) -> Atoms:
    return label(cumulene.sample(shapes, 1, rng, length)[0], zero=zero)


def _above(atoms: Atoms, zero: float) -> Atoms:
    atoms.info[ENERGY] -= zero
    atoms.info[DEGREES] = math.degrees(atoms.info[cumulene.TWIST])
    return atoms
