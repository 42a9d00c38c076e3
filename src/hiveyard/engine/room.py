"""Whether one more machine fits into this host's memory: told before anything starts.

Sessions stand until somebody stops them, so there is nothing to wait for beside them. Tasks end by themselves.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from sqlalchemy import Connection

from hiveyard.core.errors import NoMemory
from hiveyard.core.states import Phase, TaskState
from hiveyard.engine.settings import EngineSettings
from hiveyard.store import views

HOST_SHARE = 1024
"""MiB that are left to the host itself."""
_AT_WORK = (TaskState.ASSIGNED, TaskState.RUNNING)
_THERE = (Phase.CREATED, Phase.PREPARING, Phase.RUNNING)


class _Held(NamedTuple):
    """What machines are promised, in MiB each: those of tasks, and those of sessions that no task made."""

    tasks: list[int]
    sessions: list[int]


def check_size(settings: EngineSettings, wanted_mib: int | None) -> None:
    """Raises NoMemory for a machine that would not fit if it were the only one. None is what is set."""
    wanted, limit = wanted_mib or settings.memory_mib, _limit(settings)
    if wanted > limit:
        raise NoMemory(
            f"a machine of {wanted} MiB does not fit: machines may have {limit} MiB, all together",
            hint="--memory with less, or memory_total_mib in the settings",
        )


def check(conn: Connection, settings: EngineSettings, wanted_mib: int, *, besides: str | None = None) -> None:
    """Raises NoMemory when a machine of `wanted_mib` does not fit beside those that are there. `besides` is a session
    that is not counted."""
    held = _held(conn, settings, besides)
    sizes = [*held.tasks, *held.sessions]
    if sum(sizes) + wanted_mib > _limit(settings):
        raise _full(settings, wanted_mib, sizes)


def fits(conn: Connection, settings: EngineSettings, wanted_mib: int, *, besides: str) -> bool:
    """Whether the machine of task `besides` fits now; False: it will when other tasks have ended. Raises NoMemory when
    it would not then either."""
    held = _held(conn, settings, besides)
    if sum(held.sessions) + wanted_mib > _limit(settings):
        raise _full(settings, wanted_mib, held.sessions)
    return sum(held.tasks) + sum(held.sessions) + wanted_mib <= _limit(settings)


def _full(settings: EngineSettings, wanted_mib: int, sizes: list[int]) -> NoMemory:
    held = f"{len(sizes)} machines hold {sum(sizes)} of {_limit(settings)} MiB"
    return NoMemory(
        f"a machine of {wanted_mib} MiB does not fit: {held}",
        hint="hv list, then hv stop one, or --memory with less",
    )


def _held(conn: Connection, settings: EngineSettings, besides: str | None) -> _Held:
    """A task holds memory from when its machine is journaled, a session from when it is asked for."""
    with_machine = {machine.session for machine in views.machines(conn)} - {besides}
    tasks = [task.request for task in views.tasks(conn, states=_AT_WORK) if task.id in with_machine]
    rows = views.sessions(conn, phases=_THERE, own=True)
    sessions = [row.request or {} for row in rows if row.id != besides]
    return _Held(_sizes(tasks, settings), _sizes(sessions, settings))


def _sizes(requests: list[dict[str, Any]], settings: EngineSettings) -> list[int]:
    return [int(request.get("memory_mib") or settings.memory_mib) for request in requests]


def _limit(settings: EngineSettings) -> int:
    return settings.memory_total_mib or _host_mib() - HOST_SHARE


def _host_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
