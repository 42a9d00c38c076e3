"""Read a session's past for people: its turns with their usage, older events, what its agent said last."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Sequence
from typing import NamedTuple

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.errors import SessionDamaged
from hiveyard.core.events import Event
from hiveyard.core.states import TurnState
from hiveyard.core.usage import Usage
from hiveyard.engine.resources import Resources
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.workspace.result import Diffstat, diffstat
from hiveyard.kit.text import decode
from hiveyard.store import history, journal, views
from hiveyard.store.views import TurnRow


class TurnUsage(NamedTuple):
    """A turn, and what it used."""

    turn: TurnRow
    usage: Usage


class QueuedPrompt(NamedTuple):
    """A prompt that waits for its turn."""

    turn: int
    text: str


class History:
    """The interface of sessions' past for the page."""

    def __init__(self, resources: Resources) -> None:
        self._r = resources

    async def last_seq(self) -> int:
        """Return the number of the last event of all."""
        return await self._r.event_log.read(journal.last_seq)

    def follow(self, id: str | None, *, after: int) -> AsyncGenerator[list[Event], None]:
        """Yield the events of a session, or of all (None), in lists as they come."""
        return self._r.event_log.store.follow_pages(after=after, session=id)

    async def before(self, id: str, seq: int, limit: int) -> list[Event]:
        """Return the last `limit` events of a session before a sequence number."""
        return await self._r.event_log.read(lambda conn: journal.events_before(conn, id, seq, limit))

    async def turns(self, id: str) -> list[TurnUsage]:
        """Return the turns of a session with their usage, sorted by number."""

        def read(conn: Connection) -> list[TurnUsage]:
            used = history.usage_by_turn(conn, id)
            return [TurnUsage(row, used.get(row.number, Usage())) for row in views.turns(conn, id)]

        return await self._r.event_log.read(read)

    async def queued(self, id: str) -> list[QueuedPrompt]:
        """Return the prompts that wait for their turns."""
        rows = await self._r.event_log.read(lambda conn: views.turns(conn, id))
        prompts = Prompts(self._r.workspace(id).prompts)
        found = []
        for row in rows:
            if row.state is TurnState.PENDING:
                try:
                    text = decode(await anyio.to_thread.run_sync(prompts.read, row.number))
                except SessionDamaged as error:
                    text = error.message
                found.append(QueuedPrompt(row.number, text))
        return found

    async def diffstats(self, ids: Collection[str]) -> dict[str, Diffstat]:
        """Return the size of the collected changes of the sessions that have some."""
        rows = await self._r.event_log.read(lambda conn: views.results(conn, ids))
        return {row.session: diffstat(row) for row in rows}

    async def ends(self) -> dict[str, int]:
        """Return the number of the last event of each session that ended something a person waits for."""
        return await self._r.event_log.read(history.last_ends)

    async def last_words(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the last thing that each agent said, did or was asked to do."""

        def read(conn: Connection) -> dict[str, str]:
            return {id: words for id in ids if (words := history.last_words(conn, id))}

        return await self._r.event_log.read(read)
