"""Parts that other distributions bring, by entry points; see docs/plugins.md.

Nothing is looked for before somebody asks, and nothing is imported before it is used.
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
    """What plugins there are. Raises BadPlugin where one has the name of another, or of one of Hiveyard's `own`."""
    return sorted(_found(group, own))


def make(group: Group, name: str, own: Collection[str], *arguments: object) -> object | None:
    """What the plugin `name` makes of `arguments`; None when there is no such plugin. Raises BadPlugin."""
    entry = _found(group, own).get(name)
    if entry is None:
        return None
    try:
        made = entry.load()(*arguments)
    except Exception as error:  # code of a stranger, which may fail in any way
        raise _bad(entry, f"cannot be used: {type(error).__name__}: {one_line(str(error))}") from error
    if getattr(made, "name", None) != name:
        raise _bad(entry, f"calls what it makes {one_line(repr(getattr(made, 'name', None)), 80)}")
    return made  # type: ignore[no-any-return]


def _found(group: Group, own: Collection[str]) -> dict[str, EntryPoint]:
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=group):
        if not _NAME.match(entry.name):
            raise _bad(entry, "has no name that can be: 1 to 31 of a-z, 0-9, - and _, a letter first")
        if entry.name in own:
            raise _bad(entry, "has the name of one of Hiveyard's own")
        before = found.setdefault(entry.name, entry)
        if before.value != entry.value:
            raise _bad(entry, f"has the name of another one, of {_distribution(before)}")
    return found


def _bad(entry: EntryPoint, why: str) -> BadPlugin:
    whose = _distribution(entry)
    return BadPlugin(
        f"the plugin {one_line(entry.name, 80)!r} ({entry.group}) of {whose} {why}", hint=f"pip uninstall {whose}"
    )


def _distribution(entry: EntryPoint) -> str:
    return one_line(entry.dist.name, 80) if entry.dist is not None else "an unknown distribution"
