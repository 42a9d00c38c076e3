"""Whether one more machine fits into this host's memory: told before anything starts."""

from __future__ import annotations

import os

from sqlalchemy import Connection

from hiveyard.core.errors import NoMemory
from hiveyard.core.states import Phase, TaskState
from hiveyard.engine.settings import EngineSettings
from hiveyard.store import views

HOST_SHARE = 1024
"""MiB that are left to the host itself."""
_AT_WORK = (TaskState.ASSIGNED, TaskState.RUNNING)
_THERE = (Phase.CREATED, Phase.PREPARING, Phase.RUNNING)


def check(conn: Connection, settings: EngineSettings, wanted_mib: int, *, besides: str | None = None) -> None:
    """Raises NoMemory when a machine of `wanted_mib` does not fit beside those that are there. `besides` is a session
    that is not counted."""
    limit = settings.memory_total_mib or _host_mib() - HOST_SHARE
    sizes = _sizes(conn, settings, besides)
    if sum(sizes) + wanted_mib <= limit:
        return
    raise NoMemory(
        f"a machine of {wanted_mib} MiB does not fit: {len(sizes)} machines hold {sum(sizes)} of {limit} MiB",
        hint="hv list, then hv stop one, or --memory with less",
    )


def _sizes(conn: Connection, settings: EngineSettings, besides: str | None) -> list[int]:
    requests = {task.id: task.request for task in views.tasks(conn, states=_AT_WORK)}
    for session in views.sessions(conn, phases=_THERE):
        if session.request is not None:
            requests[session.id] = session.request
    requests.pop(besides or "", None)
    return [int(request.get("memory_mib") or settings.memory_mib) for request in requests.values()]


def _host_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
