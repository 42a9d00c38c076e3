"""Whether one more machine fits into this host's memory: told before anything starts.

Sessions stand until somebody stops them, and machines that `--keep` left until somebody removes them, so there is
nothing to wait for beside them. Tasks end by themselves.
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
"""MiB that are left to the host itself."""
_THERE = (Phase.CREATED, Phase.PREPARING, Phase.RUNNING)


class _Held(NamedTuple):
    """What machines are promised, in MiB each: those that end by themselves, of tasks, and those that a person has to
    end, of sessions that no task made and of tasks with `--keep` that are over."""

    ending: list[int]
    standing: list[int]


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
    sizes = [*held.ending, *held.standing]
    if sum(sizes) + wanted_mib > _limit(settings):
        raise _full(settings, wanted_mib, sizes)


def fits(conn: Connection, settings: EngineSettings, wanted_mib: int, *, besides: str) -> bool:
    """Whether the machine of task `besides` fits now; False: it will when other tasks have ended. Raises NoMemory when
    it would not then either."""
    held = _held(conn, settings, besides)
    if sum(held.standing) + wanted_mib > _limit(settings):
        raise _full(settings, wanted_mib, held.standing)
    return sum(held.ending) + sum(held.standing) + wanted_mib <= _limit(settings)


def _full(settings: EngineSettings, wanted_mib: int, sizes: list[int]) -> NoMemory:
    held = f"{len(sizes)} machines hold {sum(sizes)} of {_limit(settings)} MiB"
    return NoMemory(
        f"a machine of {wanted_mib} MiB does not fit: {held}",
        hint="hv list, then hv stop one, hv rm what --keep left, or --memory with less",
    )


def _held(conn: Connection, settings: EngineSettings, besides: str | None) -> _Held:
    """A task holds memory for as long as the journal knows a machine of it, a session from when it is asked for."""
    with_machine = {machine.session for machine in views.machines(conn)} - {besides}
    tasks = [task for id in with_machine if (task := views.find_task(conn, id)) is not None]
    rows = views.sessions(conn, phases=_THERE, own=True)
    sessions = [row.request or {} for row in rows if row.id != besides]
    ending, kept = ([task.request for task in tasks if _is_kept(conn, task) is kept] for kept in (False, True))
    return _Held(_sizes(ending, settings), _sizes([*kept, *sessions], settings))


def _is_kept(conn: Connection, task: TaskRow) -> bool:
    """Whether its machine stays until somebody removes it. With `hv rm --force` somebody just does."""
    return task.state.over and bool(task.request.get("keep")) and views.session(conn, task.id).reason != "removed"


def _sizes(requests: list[dict[str, Any]], settings: EngineSettings) -> list[int]:
    return [int(request.get("memory_mib") or settings.memory_mib) for request in requests]


def _limit(settings: EngineSettings) -> int:
    return settings.memory_total_mib or _host_mib() - HOST_SHARE


def _host_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
