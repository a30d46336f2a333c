"""The errors and warnings of efa_addons."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


class EFAError(ValueError):
    """Input that EFA cannot serve; the message names what was given, expected, and what to do."""


class EFAWarning(UserWarning):
    """A result that is computed, but no longer carries every promise (see the message)."""


def unknown_names(kind: str, given: Iterable[str], known: Iterable[str]) -> EFAError:
    """An `EFAError` for names that do not exist, with the nearest known ones."""
    known = sorted(known)
    parts = []
    for name in sorted(given):
        begun = [other for other in known if other.startswith(name)] if len(name) > 5 else []
        near = begun or difflib.get_close_matches(name, known, n=1)
        parts.append(f"'{name}'" + (f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""))
    return EFAError(f"unknown {kind} {', '.join(parts)}; known: {', '.join(known)}.")


def refuse_unknown_flags(kind: str, argv: Iterable[str], known: Collection[str], begin: str = "--") -> None:
    """Raises for flags that begin so and are none: argparse takes the beginning of one for the flag, and names nothing near."""
    names = [argument.partition("=")[0] for argument in argv]
    unknown = [name for name in names if name.startswith(begin) and name not in known]
    if unknown:
        raise unknown_names(kind, unknown, known)


def how_to_install(extra: str) -> str:
    """The command that brings an extra of this package."""
    return f'pip install "efa-addons[{extra}]", or ".[{extra}]" in a clone'
