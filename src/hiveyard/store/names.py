"""What people type to name a task or session: its id, the start of its id, or its slug."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, func, select, union

from hiveyard.core.errors import Ambiguous, NotFound
from hiveyard.store.schema import sessions, tasks

_SHOWN = 10
_LIST = "hv list -a, or hv ps -a"


def resolve(conn: Connection, ref: str) -> str:
    """The id that `ref` means: an exact id, else an exact slug, else the only id that starts with it.

    Raises NotFound, and Ambiguous with the candidates when there are several.
    """
    if ref:
        size = func.length(ref)
        for match in (lambda c: c.id == ref, lambda c: c.slug == ref, lambda c: func.substr(c.id, 1, size) == ref):
            if found := _matching(conn, match(tasks.c), match(sessions.c)):
                return _only(ref, found)
    raise NotFound(f"no task or session is called {ref[:80]!r}", hint=_LIST)


def free_slug(conn: Connection, wanted: str) -> str:
    """`wanted`, or with -2, -3, ... when others have it. In a write it stays free until the end of that write."""
    taken = {slug for _, slug in _matching(conn, *(_starts(table.c.slug, wanted) for table in (tasks, sessions)))}
    number = 1
    slug = wanted
    while slug in taken:
        number += 1
        slug = f"{wanted}-{number}"
    return slug


def unknown(session: str) -> NotFound:
    """The error for an id that stands for nothing."""
    return NotFound(f"there is no task or session {session[:80]}: it was removed, or never made", hint=_LIST)


def _starts(column: ColumnElement[str], text: str) -> ColumnElement[bool]:
    return func.substr(column, 1, func.length(text)) == text


def _matching(conn: Connection, task: ColumnElement[bool], session: ColumnElement[bool]) -> list[tuple[str, str]]:
    """Id and slug of all that fit, each id once, in the order of their slugs."""
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
