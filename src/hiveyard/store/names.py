"""Resolve the references that users type for a task or session: its id, the start of its id, or its slug."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, func, select, union

from hiveyard.core.errors import Ambiguous, NotFound
from hiveyard.store.schema import sessions, tasks

_SHOWN = 10
_LIST = "hv list -a, or hv ps -a"


def resolve(conn: Connection, ref: str) -> str:
    """Return the id that `ref` names: an exact id, else an exact slug, else the only id that starts with it.

    Raises NotFound; Ambiguous, with the candidates, if there are several.
    """
    if ref:
        size = func.length(ref)
        for match in (lambda c: c.id == ref, lambda c: c.slug == ref, lambda c: func.substr(c.id, 1, size) == ref):
            if found := _matching(conn, match(tasks.c), match(sessions.c)):
                return _only(ref, found)
    raise NotFound(f"no task or session is called {ref[:80]!r}", hint=_LIST)


def free_slug(conn: Connection, base: str) -> str:
    """Return `base`, or `base` with -2, -3, ... if it is taken. In a write it stays free until the write ends."""
    taken = {slug for _, slug in _matching(conn, *(_starts(table.c.slug, base) for table in (tasks, sessions)))}
    number = 1
    slug = base
    while slug in taken:
        number += 1
        slug = f"{base}-{number}"
    return slug


def unknown(session: str) -> NotFound:
    """Return the error for an unknown id."""
    return NotFound(f"there is no task or session {session[:80]}: it was removed, or never existed", hint=_LIST)


def _starts(column: ColumnElement[str], text: str) -> ColumnElement[bool]:
    return func.substr(column, 1, func.length(text)) == text


def _matching(conn: Connection, task: ColumnElement[bool], session: ColumnElement[bool]) -> list[tuple[str, str]]:
    """Return id and slug of all matches, each id once, sorted by slug."""
    found = union(
        select(tasks.c.id, tasks.c.slug).where(task),
        select(sessions.c.id, sessions.c.slug).where(session),
    )
    return sorted(((row.id, row.slug) for row in conn.execute(found)), key=lambda pair: pair[::-1])


def _only(ref: str, found: list[tuple[str, str]]) -> str:
    ids = list(dict.fromkeys(key for key, _ in found))
    if len(ids) == 1:
        return ids[0]
    shown = ", ".join(f"{key} ({slug})" for key, slug in found[:_SHOWN])
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    raise Ambiguous(f"{ref!r} may be {shown}{more}", hint=_LIST)
