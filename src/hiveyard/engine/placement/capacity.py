"""Check whether one more machine fits into this host's memory, before it starts.

Machines of sessions and of finished tasks with `--keep` stay until a user removes them, so waiting for their memory is
useless. Tasks end by themselves.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from sqlalchemy import Connection

from hiveyard.core.errors import NoMemory
from hiveyard.core.states import Phase
from hiveyard.engine.settings import EngineSettings
from hiveyard.store import views
from hiveyard.store.views import TaskRow

HOST_SHARE = 1024
"""Memory reserved for the host itself, in MiB."""
_WITH_MACHINE = (Phase.CREATED, Phase.PREPARING, Phase.RUNNING)


class _Reserved(NamedTuple):
    """The memory of each machine, in MiB: `temporary` ones of tasks, which end by themselves, and `permanent` ones,
    which
    a user has to end: of sessions without a task, and of finished tasks with `--keep`."""

    temporary: list[int]
    permanent: list[int]


def check_size(settings: EngineSettings, memory_mib: int | None) -> None:
    """Raise NoMemory for a machine that would not fit even if it were the only one. None means the default size."""
    size, limit = memory_mib or settings.memory_mib, _limit(settings)
    if size > limit:
        raise NoMemory(
            f"a machine of {size} MiB does not fit: all machines together may have {limit} MiB",
            hint="a smaller --memory, or memory_total_mib in the settings",
        )


def check(conn: Connection, settings: EngineSettings, memory_mib: int, *, excluding: str | None = None) -> None:
    """Raise NoMemory if a machine of `memory_mib` does not fit beside the existing ones. The session `excluding` does
    not
    count."""
    reserved = _reserved(conn, settings, excluding)
    sizes = [*reserved.temporary, *reserved.permanent]
    if sum(sizes) + memory_mib > _limit(settings):
        raise _full(settings, memory_mib, sizes)


def fits(conn: Connection, settings: EngineSettings, memory_mib: int, *, excluding: str) -> bool:
    """Return whether the machine of task `excluding` fits now; False if it fits once other tasks have ended. Raises
    NoMemory if it will not fit even then."""
    reserved = _reserved(conn, settings, excluding)
    if sum(reserved.permanent) + memory_mib > _limit(settings):
        raise _full(settings, memory_mib, reserved.permanent)
    return sum(reserved.temporary) + sum(reserved.permanent) + memory_mib <= _limit(settings)


def _full(settings: EngineSettings, memory_mib: int, sizes: list[int]) -> NoMemory:
    used = f"{len(sizes)} machines use {sum(sizes)} of {_limit(settings)} MiB"
    return NoMemory(
        f"a machine of {memory_mib} MiB does not fit: {used}",
        hint="hv list, then hv stop a session, hv rm a task with --keep, or a smaller --memory",
    )


def _reserved(conn: Connection, settings: EngineSettings, excluding: str | None) -> _Reserved:
    """Return the reserved memory. A task has some while the journal knows its machine, a session from its request
    on."""
    rows = views.sessions(conn, phases=_WITH_MACHINE, own=True)
    # A task that is over may go on as a session.
    with_machine = {machine.session for machine in views.machines(conn)} - {excluding, *(row.id for row in rows)}
    tasks = [task for id in with_machine if (task := views.find_task(conn, id)) is not None]
    sessions = [row.request or {} for row in rows if row.id != excluding]
    temporary, kept = ([task.request for task in tasks if _is_kept(conn, task) is kept] for kept in (False, True))
    return _Reserved(_sizes(temporary, settings), _sizes([*kept, *sessions], settings))


def _is_kept(conn: Connection, task: TaskRow) -> bool:
    """Return whether its machine stays until a user removes it; `hv rm --force` is just doing that."""
    return task.state.over and bool(task.request.get("keep")) and views.session(conn, task.id).reason != "removed"


def _sizes(requests: list[dict[str, Any]], settings: EngineSettings) -> list[int]:
    return [int(request.get("memory_mib") or settings.memory_mib) for request in requests]


def _limit(settings: EngineSettings) -> int:
    return settings.memory_total_mib or _host_mib() - HOST_SHARE


def _host_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
