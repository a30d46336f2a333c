"""What a source of data is, and what it makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from efa_addons.studies.common import bars, track

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class Scan:
    """How the structures of a file lie along a coordinate.

    Args:
        x: the key in their info that holds the coordinate.
        label: of the x-axis, with its unit.
        align: what of predicted curves is shifted onto the reference: "mean", "last" (the last point), or "none".
        analysis: "barrier" (first minus last), "power_law" (the exponent of E0 + c / x^n over `tail`), or "none".
        tail: range of the coordinate for the power law.
    """

    x: str
    label: str
    align: str = "mean"
    analysis: str = "none"
    tail: tuple[float, float] | None = None


@dataclass(frozen=True)
class Data:
    """What a source makes: structures for each file, by its name without .xyz, labelled; and which of them are scans."""

    sets: Mapping[str, Sequence[Atoms]]
    scans: Mapping[str, Scan] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A source of data.

    Args:
        make: `make(seed=…, **options) -> Data`.
        tiny: options for a set of a handful of structures.
        files: names of the options that are paths, or mappings to paths, of files that it reads.
    """

    make: Callable[..., Data]
    tiny: Mapping[str, Any]
    files: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """Name -> default; `inspect.Parameter.empty`: it must be given."""
        return {name: parameter.default for name, parameter in inspect.signature(self.make).parameters.items()}

    def paths(self, options: Mapping[str, Any]) -> list[str]:
        """Of all files that it reads with these options: their contents decide the data, too."""
        given = [options[name] for name in self.files if options.get(name) is not None]
        return [path for entry in given for path in (entry.values() if isinstance(entry, Mapping) else [entry])]


def draw(sample: Callable[[np.random.Generator], Atoms], seed: int, **numbers: int) -> dict[str, list[Atoms]]:
    """Sets of so many labelled structures each: `draw(sample, 0, train=200, test=50)`.

    Every set has a stream of random numbers of its own, by its name: the others stay as they are when one grows, and a larger
    one begins with the structures of a smaller one.
    """
    with bars() as progress:
        return {
            name: [sample(rng) for _ in track(range(num), f"{name} set", progress)]
            for name, num in numbers.items()
            for rng in [np.random.default_rng([seed, *name.encode()])]
        }
