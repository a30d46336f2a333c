"""What a report measures of a run beyond its errors: scans, and what was reached by a given time. Energies eV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.optimize import least_squares

from efa_addons.errors import EFAError
from efa_addons.studies.record import Profile, Record

EXPONENTS = (0.1, 20.0)  # n of 1/x^n that a fit may find
FLAT = 0.01  # a tail that varies less than this part of the reference's has no exponent
EXPLAINED = 0.9  # part of a tail's variance that its power law must explain
OUTLIER = 0.02  # residuals beyond this part of a tail's range count linearly, not squared


def aligned(profile: Profile) -> np.ndarray:
    """Predicted energies (num_points,), shifted onto the reference as the scan's `align` says."""
    energies, reference = np.array(profile.energies), np.array(profile.reference)
    align = profile.scan["align"]
    if align == "mean":
        return energies - energies.mean() + reference.mean()
    if align == "last":
        return energies - energies[-1] + reference[-1]
    if align == "none":
        return energies
    raise EFAError(f"align of a scan must be mean, last or none, got {align!r}.")


def deviations(profile: Profile) -> np.ndarray:
    """Absolute deviations (num_points,) from the reference, aligned."""
    return np.abs(aligned(profile) - np.array(profile.reference))


def barrier_error(profile: Profile) -> float:
    """Barriers are E(first) - E(last); the model's minus the reference's."""
    return _barrier(profile.energies) - _barrier(profile.reference)


def exponent(profile: Profile) -> float | None:
    """The power of x with which the model's energy decays in the scan's `tail`, see `power_law`."""
    found = fit_tail(profile, profile.energies)
    return None if found is None else found[0]


def reference_exponent(profile: Profile) -> float | None:
    """The same of the reference."""
    found = fit_tail(profile, profile.reference)
    return None if found is None else found[0]


def fit_tail(profile: Profile, energies: Sequence[float]) -> tuple[float, float] | None:
    """`power_law` of a scan's tail, for the model's or the reference's energies; none where they are `FLAT`."""
    inside = in_tail(profile)
    smallest = FLAT * float(np.ptp(np.array(profile.reference)[inside])) if inside.any() else 0.0
    return power_law(tuple(np.array(profile.x)[inside]), tuple(np.array(energies)[inside]), smallest)


def in_tail(profile: Profile) -> np.ndarray:
    """Which points (num_points,) lie in the scan's `tail`, ends included; without a tail, all."""
    low, high = profile.scan.get("tail") or (-math.inf, math.inf)
    return np.array([low <= value <= high for value in profile.x], dtype=bool)


@cache  # a report asks for each more than once
def power_law(x: tuple[float, ...], energies: tuple[float, ...], smallest: float = 0.0) -> tuple[float, float] | None:
    """Exponent -n, and E0, of the fit E(x) = E0 + c / x^n.

    The exponent is the fit's own. A line through log|E - E0| over log x has the same slope where the law is exact, but gives
    most weight to the last points, where least is left of the energy and E0's error is all of it. E0 and c are linear: for
    each n of a grid they are solved for, and the best n is where a fit of all three starts; its loss is squares for small
    residuals, and grows linearly beyond, so that a single bad point does not decide.

    None where there is no power law: fewer than 4 points, a range of energies of at most `smallest`, an n at the
    border of `EXPONENTS`, or less than `EXPLAINED` of the variance explained.
    """
    distances, values = np.array(x, dtype=float), np.array(energies, dtype=float)
    spread = float(np.ptp(values)) if len(values) >= 4 else 0.0
    if not (math.isfinite(spread) and spread > smallest) or distances.min() <= 0:
        return None
    # dimensionless: the middle of the tail is at 1, and energies are of order 1
    scaled, unit = distances / math.sqrt(distances.min() * distances.max()), (values - values.mean()) / spread
    candidates = [(_linear(scaled, unit, n), n) for n in np.geomspace(*EXPONENTS, 40)[1:-1]]
    (_, offset, factor), start = min(candidates, key=lambda candidate: candidate[0][0])
    fit = least_squares(
        lambda p: p[0] + p[1] * scaled ** -p[2] - unit,
        [offset, factor, start],
        bounds=([-np.inf, -np.inf, EXPONENTS[0]], [np.inf, np.inf, EXPONENTS[1]]),
        loss="soft_l1",
        f_scale=OUTLIER,
        x_scale="jac",
        xtol=1e-12,
        ftol=1e-14,
        gtol=1e-14,
        max_nfev=1000,
    )
    offset, _, n = fit.x
    left = float(np.mean(fit.fun**2) / np.var(unit))
    if left > 1 - EXPLAINED or not 1.05 * EXPONENTS[0] < n < 0.95 * EXPONENTS[1]:
        return None
    return -float(n), float(offset * spread + values.mean())


def best(record: Record, key: str, until: float = math.inf) -> float | None:
    """The lowest value of `key` in the validations after at most `until` seconds of training; none: no validation yet."""
    values = [entry[key] for entry in record.curve if entry["seconds"] <= until]
    finite = [value for value in values if math.isfinite(value)]
    return min(finite) if finite else (math.nan if values else None)


def _barrier(energies: Sequence[float]) -> float:
    return energies[0] - energies[-1]


def _linear(x: np.ndarray, y: np.ndarray, n: float) -> tuple[float, float, float]:
    """Sum of squares, E0 and c of the best E0 + c / x^n for this n."""
    basis = np.stack([np.ones_like(x), x**-n], axis=1)
    (offset, factor), *_ = np.linalg.lstsq(basis, y, rcond=None)
    return float(((basis @ [offset, factor] - y) ** 2).sum()), float(offset), float(factor)
