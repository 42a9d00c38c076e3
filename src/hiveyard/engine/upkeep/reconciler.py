"""Compare the journal with the machines that exist, at the start, each minute and on request.

A machine that no open task, running session and `--keep` needs is removed. Between the starts it must be seen twice: a
provider may list a machine for a moment longer than it exists. A provider that does not answer is not known to be
empty: nothing of it is removed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import anyio
import msgspec

from hiveyard.core.errors import HiveyardError
from hiveyard.core.machines import MachineStatus
from hiveyard.core.ports import Provider
from hiveyard.core.states import AT_WORK
from hiveyard.engine.placement.machine_lease import MachineLease, machine_name
from hiveyard.engine.resources import Resources
from hiveyard.store import views
from hiveyard.store.views import MachineRow

log = logging.getLogger(__name__)
INTERVAL = 60.0
"""Seconds between two comparisons."""


class Reconciled(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a comparison: the machines that were `removed`; those that nothing needs and that are removed if
    the next comparison finds them again (`suspected`); and the providers that did not answer (`silent`)."""

    removed: list[str]
    suspected: list[str]
    silent: list[str]


class _Found(NamedTuple):
    """A machine of a provider that nothing needs."""

    provider: str
    name: str


class Reconciler:
    """Compares again and again; `lock` gives a session's lock."""

    def __init__(self, resources: Resources, lock: Callable[[str], anyio.Lock]) -> None:
        self._r = resources
        self._lock = lock
        self._suspected: set[_Found] = set()
        self._running = anyio.Lock()

    async def keep_running(self) -> None:
        """Compare each minute. Never returns; failures are logged."""
        while True:
            await self._r.clock.sleep(INTERVAL)
            try:
                await self.run()
            except Exception:
                log.exception("the journal could not be compared with the machines that exist")

    async def run(self, *, at_once: bool = False) -> Reconciled:
        """Compare once. With `at_once` a machine need not be seen twice."""
        async with self._running:
            there, silent = await self._machines()
            # The journal is read last: the machine of a task that started meanwhile is journaled before it is created.
            needed = await needed_machines(self._r)
            found = {one for one in there if one.name not in needed}
            removed = [
                one.name for one in sorted(found) if at_once or one in self._suspected if await self._remove(one)
            ]
            self._suspected = {one for one in found if one.name not in removed}
            suspected = sorted(one.name for one in self._suspected)
            return Reconciled(removed=removed, suspected=suspected, silent=silent)

    async def _machines(self) -> tuple[set[_Found], list[str]]:
        there: set[_Found] = set()
        silent: list[str] = []
        for provider in self._r.providers.values():
            try:
                there |= {_Found(provider.name, name) for name in await provider.names()}
            except HiveyardError as error:
                log.info("the provider %s cannot list its machines: %s", provider.name, error.message)
                silent.append(provider.name)
        return there, silent

    async def _remove(self, found: _Found) -> bool:
        """Remove a machine, unless its session was resumed meanwhile. Returns whether it was removed."""
        provider = self._r.providers[found.provider]
        row = await self._r.event_log.read(lambda conn: views.find_machine(conn, found.name))
        async with self._lock(row.session) if row is not None else nullcontext():
            if found.name in await needed_machines(self._r):
                return False
            return await _terminate(self._r, provider, found.name, row)


async def needed_machines(resources: Resources) -> set[str]:
    """Return the names of the machines of open tasks, of running sessions, and of tasks with `--keep`."""
    tasks = await resources.event_log.read(views.tasks)
    needed = {task.id for task in tasks if not task.state.over or task.request.get("keep")}
    for session in await resources.event_log.read(lambda conn: views.sessions(conn, phases=AT_WORK)):
        needed.add(session.id)
    return {machine_name(id) for id in needed}


async def _terminate(resources: Resources, provider: Provider, name: str, row: MachineRow | None) -> bool:
    log.info("removing the leftover machine %s of %s", name, provider.name)
    try:
        if row is not None and row.status is not MachineStatus.STOPPED:
            await MachineLease(row.session, provider, None, resources.event_log).release()
        await provider.terminate(name)
    except Exception:
        log.exception("%s of %s was not removed", name, provider.name)
        return False
    return True
