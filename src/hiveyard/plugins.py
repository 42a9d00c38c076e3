"""Load parts that other distributions add by entry points; see docs/plugins.md.

Entry points are searched on request only, and a plugin is imported when it is used.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from hiveyard.core.errors import BadPlugin
from hiveyard.kit.text import one_line

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}\Z")
Group = Literal["hiveyard.providers", "hiveyard.process_managers", "hiveyard.agents"]


def names(group: Group, own: Collection[str]) -> list[str]:
    """Return the names of the plugins. Raises BadPlugin for one with the name of another, or of Hiveyard's `own`."""
    return sorted(_found(group, own))


def make(group: Group, name: str, own: Collection[str], *arguments: object) -> object | None:
    """Call the plugin `name` with `arguments` and return the result; None for an unknown name. Raises BadPlugin."""
    entry = _found(group, own).get(name)
    if entry is None:
        return None
    try:
        made = entry.load()(*arguments)
    except Exception as error:  # foreign code may fail in any way
        raise _bad(entry, f"cannot be used: {type(error).__name__}: {one_line(str(error))}") from error
    if getattr(made, "name", None) != name:
        raise _bad(entry, f"returned an object whose name is {one_line(repr(getattr(made, 'name', None)), 80)}")
    return made  # type: ignore[no-any-return]


def _found(group: Group, own: Collection[str]) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if not _NAME.match(entry.name):
            raise _bad(entry, "has an invalid name: it is 1 to 31 of a-z, 0-9, - and _, and begins with a letter")
        if entry.name in own:
            raise _bad(entry, "has the name of one of Hiveyard's own")
        before = found.setdefault(entry.name, entry)
        if before.value != entry.value:
            raise _bad(entry, f"has the name of another one, of {_distribution(before)}")
    return found


def _bad(entry: EntryPoint, why: str) -> BadPlugin:
    distribution = _distribution(entry)
    return BadPlugin(
        f"the plugin {one_line(entry.name, 80)!r} ({entry.group}) of {distribution} {why}",
        hint=f"pip uninstall {distribution}",
    )


def _distribution(entry: EntryPoint) -> str:
    return one_line(entry.dist.name, 80) if entry.dist is not None else "an unknown distribution"
