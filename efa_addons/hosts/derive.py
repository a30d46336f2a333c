"""Functions of a host with a few lines put in, derived from the installed source.

`super().forward()` or wrappers around the layers do not survive TorchScript, and a copy of the host's forward would age. Here
the source is the host's own, and a line that is no longer where it was is an error.
"""

from __future__ import annotations

import inspect
import linecache
import textwrap
import types
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple

from efa_addons.errors import EFAError


class Supported(NamedTuple):
    """A host's distribution and the versions known to have the lines that EFA hangs on."""

    package: str
    versions: tuple[str, ...]


def add_lines(source: str, additions: Sequence[tuple[str, str]], name: str, host: Supported) -> str:
    """`source` with lines put in.

    Args:
        source: a function.
        additions: (anchor, text): the line before which text goes, and text.
        name: the function, for the error.
        host: whose function it is, for the error.

    Raises:
        EFAError: an anchor is not there exactly once, that is, this version of the host is not supported.
    """
    lines = textwrap.dedent(source).splitlines()
    for anchor, addition in additions:
        found = [i for i, line in enumerate(lines) if line.strip() == anchor]
        if len(found) != 1:
            raise EFAError(
                f"{name} in {host.package} {version(host.package)} has the line '{anchor}' {len(found)} times instead of once: "
                f"EFA cannot be put into this version. Supported: {', '.join(host.versions)}."
            )
        indent = lines[found[0]][: len(lines[found[0]]) - len(lines[found[0]].lstrip())]
        lines[found[0] : found[0]] = [indent + line for line in addition.splitlines()]
    return "\n".join(lines) + "\n"


def derive(original: types.FunctionType, additions: Sequence[tuple[str, str]], host: Supported) -> types.FunctionType:
    """`original` with lines put in, compiled in its own name space; TorchScript and tracebacks find the source."""
    source = add_lines(inspect.getsource(original), additions, original.__qualname__, host)
    name = f"<efa_addons: {original.__qualname__} with EFA>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    made: dict[str, types.FunctionType] = {}
    exec(compile(source, name, "exec"), original.__globals__, made)
    return made[original.__name__]
