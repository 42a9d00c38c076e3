"""A hive without an engine: its facts alone, on a real journal, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from hiveyard.core import events as e
from hiveyard.core.states import MessageState
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.deadlines import Deadlines
from hiveyard.hive.hive import Hive
from hiveyard.hive.mailbox import MessageRequest, Sent
from hiveyard.hive.settings import HiveSettings
from hiveyard.store import hive_views, views
from hiveyard.store.database import open_store
from hiveyard.store.hive_views import MemberRow, MessageRow
from hiveyard.store.views import AskRow
from tests.support.clocks import ManualClock


@dataclass
class Facts:
    """A hive and its journal."""

    hive: Hive
    log: EventLog
    clock: ManualClock
    deadlines: Deadlines

    async def join(self, *names: str, **more: Any) -> None:
        """Let members join whose sessions have the id `s-NAME`."""
        for name in names:
            created = e.SessionCreated(slug=name, repo="/r", agent="claude", request={"repo": "/r"})
            await self.log.record(f"s-{name}", created, e.MemberJoined(name=name, **more))

    async def send(self, sender: str, to: str, text: str = "hello", **more: Any) -> Sent:
        [sent] = await self.hive.mailbox.send(sender, MessageRequest(to=[to], text=text, **more))
        return sent

    async def turn(self, name: str, number: int, *messages: str) -> None:
        """Let a member take messages into a new turn, and work."""
        delivered = [e.MessageDelivered(message=id) for id in messages]
        created = e.TurnCreated(agent="claude")
        await self.log.record(f"s-{name}", created, *delivered, e.TurnStarted(agent="claude"), turn=number)

    async def end_turn(self, name: str, number: int) -> None:
        await self.log.record(f"s-{name}", e.TurnEnded(outcome="succeeded"), turn=number)

    async def waiting(self, name: str, *states: MessageState) -> list[MessageRow]:
        session = "" if name == "operator" else f"s-{name}"
        wanted = states or (MessageState.PENDING,)
        return await self.log.read(lambda conn: hive_views.mailbox(conn, session, states=wanted))

    async def member(self, name: str) -> MemberRow:
        return await self.hive.caller(f"s-{name}")

    async def ask(self, id: str) -> AskRow:
        return await self.log.read(lambda conn: views.ask(conn, id))

    async def asks(self) -> list[AskRow]:
        return await self.log.read(views.asks)

    async def pass_time(self, seconds: float) -> None:
        self.clock.time += seconds
        await self.deadlines.step()


@asynccontextmanager
async def facts(tmp_path: Path, **settings: Any) -> AsyncIterator[Facts]:
    """Open the journal in `tmp_path`, which may be there, and yield a hive on it."""
    clock = ManualClock(1_800_000_000.0)
    async with open_store(tmp_path / "journal.db", clock=clock) as store:
        log = EventLog(store, clock)
        parts = cast(Any, SimpleNamespace(event_log=log))
        hive = Hive(parts, HiveSettings(**settings), tmp_path / "hive")
        yield Facts(hive, log, clock, Deadlines(hive, log))
