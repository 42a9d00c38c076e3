"""Do what is due: reminders, and questions that expire. Each is done once, also over restarts and clock jumps."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple

import anyio
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.asks import QUESTION
from hiveyard.hive.bells import wait_for
from hiveyard.hive.hive import Hive
from hiveyard.store import hive_views

log = logging.getLogger(__name__)
STEP = 15.0
"""Seconds until the wall clock is read again while something is due later: it may have jumped."""
RETRY = 5.0


class Deadline(NamedTuple):
    """A time, and what is journaled then."""

    at: float
    act: Callable[[Connection, float], None]


class Deadlines:
    """The loop that waits for deadlines. `changed` is called when there may be a new one."""

    def __init__(self, hive: Hive, event_log: EventLog) -> None:
        self._hive = hive
        self._log = event_log
        self._changed = anyio.Event()

    def changed(self) -> None:
        self._changed.set()

    async def run(self) -> None:
        while True:
            self._changed = anyio.Event()
            try:
                wait = await self.step()
            except HiveyardError as error:
                log.warning("reminders and expiries wait: %s", error.message)
                wait = RETRY
            await wait_for(self._changed, self._log.clock, wait)

    async def step(self) -> float | None:
        """Do what is due; return the seconds until the clock should be read again, None if nothing is due later."""
        while True:
            now = self._log.clock.now()
            next_at = await self._log.store.write(lambda conn, now=now: self._do_due(conn, now))  # type: ignore[misc]
            if next_at is None:
                return None
            if next_at > now:
                return float(min(next_at - now, STEP))

    def _do_due(self, conn: Connection, now: float) -> float | None:
        """Journal what is due; return the time of the next deadline: `now` if something was, because a reminder that
        repeats may be due again."""
        deadlines = self._all(conn)
        due = [deadline for deadline in deadlines if deadline.at <= now]
        for deadline in due:
            deadline.act(conn, now)
        return now if due else min((deadline.at for deadline in deadlines), default=None)

    def _all(self, conn: Connection) -> list[Deadline]:
        reminders, asks = self._hive.reminders, self._hive.asks
        return [
            *(
                Deadline(row.due_at, lambda conn, now, row=row: reminders.deliver(conn, row, now))  # type: ignore[misc]
                for row in hive_views.reminders(conn)
            ),
            *(
                Deadline(ask.expires_at, lambda conn, now, ask=ask: asks.expire(conn, ask, now))  # type: ignore[misc]
                for ask in hive_views.open_asks(conn, kinds=(QUESTION,))
                if ask.expires_at is not None
            ),
        ]
