"""Count the places that machines take: the host's memory, and the slots of tasks.

A session takes its memory from the moment it begins to be prepared until its machine is gone.
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

HOST_SHARE = 1024
"""Memory reserved for the host itself, in MiB."""
_PLACED = (Phase.PREPARING, Phase.RUNNING)


@dataclass(kw_only=True)
class Capacity:
    """The places that are taken: `machines` is the memory of each in MiB, `tasks` how many tasks are at work."""

    settings: EngineSettings
    machines: list[int]
    tasks: int

    @classmethod
    def taken(cls, conn: Connection, settings: EngineSettings, *, excluding: str | None = None) -> Capacity:
        """Return the places that are taken now, without those of the session `excluding`."""
        rows = {row.id: row for row in views.sessions(conn, phases=_PLACED)}
        left = {machine.session for machine in views.machines(conn)} - rows.keys()
        rows |= {row.id: row for row in views.sessions(conn, ids=left) if row.id in left}
        rows.pop(excluding or "", None)
        places = cls(settings=settings, machines=[], tasks=0)
        for row in rows.values():
            task = views.find_task(conn, row.id)
            places.take(memory(row.request, settings), is_task=task is not None and not task.state.over)
        return places

    def take(self, mib: int, *, is_task: bool) -> None:
        """Count one more machine."""
        self.tasks += is_task
        self.machines.append(mib)

    def has_slot(self) -> bool:
        """Return whether one more task may be at work."""
        return self.tasks < self.settings.max_tasks

    def has_memory(self, mib: int) -> bool:
        """Return whether a machine of `mib` fits now."""
        return sum(self.machines) + mib <= _limit(self.settings)

    def check(self, mib: int) -> None:
        """Raise NoMemory if a machine of `mib` does not fit now."""
        if self.has_memory(mib):
            return
        used = f"{len(self.machines)} machines use {sum(self.machines)} of {_limit(self.settings)} MiB"
        raise NoMemory(
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


def _limit(settings: EngineSettings) -> int:
    return settings.memory_total_mib or _host_mib() - HOST_SHARE


def _host_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
