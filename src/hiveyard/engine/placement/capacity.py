"""Count the places that machines take: the host's memory, and the slots of tasks.

A session takes its memory from the moment it begins to be prepared until its machine is gone. Machines of sessions, and
of finished tasks with `--keep`, stay until a user removes them. Those of tasks go by themselves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from hiveyard.core.errors import NoMemory
from hiveyard.core.states import Phase
from hiveyard.engine.settings import EngineSettings
from hiveyard.store import views
from hiveyard.store.views import SessionRow, TaskRow

HOST_SHARE = 1024
"""Memory reserved for the host itself, in MiB."""
_PLACED = (Phase.PREPARING, Phase.RUNNING)


@dataclass(kw_only=True)
class Capacity:
    """The places that are taken. `temporary` and `permanent` are the memory of each machine in MiB: of tasks, and of
    what stays until a user ends it; `tasks` is how many tasks are at work."""

    settings: EngineSettings
    temporary: list[int]
    permanent: list[int]
    tasks: int

    @classmethod
    def taken(cls, conn: Connection, settings: EngineSettings, *, excluding: str | None = None) -> Capacity:
        """Return the places that are taken now, without those of the session `excluding`."""
        rows = {row.id: row for row in views.sessions(conn, phases=_PLACED)}
        left = {machine.session for machine in views.machines(conn)} - rows.keys()
        rows |= {row.id: row for row in views.sessions(conn, ids=left) if row.id in left}
        rows.pop(excluding or "", None)
        places = cls(settings=settings, temporary=[], permanent=[], tasks=0)
        for row in rows.values():
            task = views.find_task(conn, row.id)
            at_work = task is not None and not task.state.over
            ends_itself = at_work or (row.phase not in _PLACED and not _is_kept(row, task))
            places.take(memory(row.request, settings), is_task=at_work, ends_itself=ends_itself)
        return places

    def take(self, mib: int, *, is_task: bool, ends_itself: bool) -> None:
        """Count one more machine."""
        self.tasks += is_task
        (self.temporary if ends_itself else self.permanent).append(mib)

    @property
    def all(self) -> list[int]:
        return [*self.temporary, *self.permanent]

    def has_slot(self) -> bool:
        """Return whether one more task may be at work."""
        return self.tasks < self.settings.max_tasks

    def has_memory(self, mib: int) -> bool:
        """Return whether a machine of `mib` fits now."""
        return sum(self.all) + mib <= _limit(self.settings)

    def check(self, mib: int) -> None:
        """Raise NoMemory if a machine of `mib` does not fit now."""
        if not self.has_memory(mib):
            raise self._full(mib, self.all)

    def lasting_lack(self, mib: int) -> NoMemory | None:
        """Return an error if a machine of `mib` does not fit even when all tasks have ended."""
        return self._full(mib, self.permanent) if sum(self.permanent) + mib > _limit(self.settings) else None

    def _full(self, mib: int, sizes: list[int]) -> NoMemory:
        used = f"{len(sizes)} machines use {sum(sizes)} of {_limit(self.settings)} MiB"
        return NoMemory(
            f"a machine of {mib} MiB does not fit: {used}",
            hint="hv list, then hv stop a session, hv rm a task with --keep, or a smaller --memory",
        )


def check(conn: Connection, settings: EngineSettings, memory_mib: int, *, excluding: str | None = None) -> None:
    """Raise NoMemory if a machine of `memory_mib` does not fit beside the existing ones, but that of `excluding`."""
    Capacity.taken(conn, settings, excluding=excluding).check(memory_mib)


def check_size(settings: EngineSettings, memory_mib: int | None) -> None:
    """Raise NoMemory for a machine that would not fit even if it were the only one. None means the default size."""
    size, limit = memory_mib or settings.memory_mib, _limit(settings)
    if size > limit:
        raise NoMemory(
            f"a machine of {size} MiB does not fit: all machines together may have {limit} MiB",
            hint="a smaller --memory, or memory_total_mib in the settings",
        )


def memory(request: Mapping[str, Any], settings: EngineSettings) -> int:
    """Return the memory of the machine of a request, in MiB."""
    return int(request.get("memory_mib") or settings.memory_mib)


def _is_kept(session: SessionRow, task: TaskRow | None) -> bool:
    """Return whether its machine stays until a user removes it; `hv rm --force` is just doing that."""
    return task is not None and bool(task.request.get("keep")) and session.reason != "removed"


def _limit(settings: EngineSettings) -> int:
    return settings.memory_total_mib or _host_mib() - HOST_SHARE


def _host_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
