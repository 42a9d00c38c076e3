"""Sessions of the puppet in a yard: spawned, told things, waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio

from hiveyard.core.errors import SessionNotRunning, StoreUnusable
from hiveyard.core.events import AnyBody, Event
from hiveyard.engine.engine import Engine
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.sessions.view import SessionView
from tests.support.puppet import NAME

PATIENCE = 600.0
"""Seconds: a template of a VM is made once, and an emulated one takes its time."""


class FullLedger(EventLog):
    """A ledger on a full disk."""

    async def record(self, session: str, *bodies: AnyBody, turn: int | None = None) -> None:
        raise StoreUnusable("the disk is full")


async def spawned(engine: Engine, repo: Path, **more: object) -> str:
    """A session of the puppet that runs."""
    id = await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME, **more))  # type: ignore[arg-type]
    await until(engine, id, lambda view: view.status == "running")
    return id


async def at_early(engine: Engine, repo: Path, **more: object) -> str:
    """One that was told to remember apple, with the snapshot `early` after that."""
    id = await spawned(engine, repo, **more)
    await told(engine, id, "remember apple")
    await engine.snapshots.take(id, "early")
    return id


async def until(engine: Engine, id: str, true: Callable[[SessionView], bool]) -> SessionView:
    with anyio.fail_after(PATIENCE):
        while not true(view := await engine.sessions.view(id)):
            assert view.status not in ("failed",), view
            await anyio.sleep(0.05)
    return view


async def events(engine: Engine, id: str, *types: str) -> list[Event]:
    found = await engine.events(id, after=0, limit=10_000)
    return [event for event in found if not types or event.body.type in types]


async def told(engine: Engine, id: str, prompt: str) -> str:
    """Send a prompt and wait for the end of its turn; what the agent said last."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                return await answer(engine, id, await engine.sessions.send(id, prompt))
            except SessionNotRunning as error:
                # A daemon that has just been started has not found its machine yet.
                assert "not ready yet" in error.message
                await anyio.sleep(0.05)


async def answer(engine: Engine, id: str, turn: int) -> str:
    """What the agent said at the end of a turn."""
    with anyio.fail_after(PATIENCE):
        while not [event for event in await events(engine, id, "turn.ended") if event.turn == turn]:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    ended = [event.body for event in await events(engine, id, "agent.ended") if event.turn == turn]
    return ended[-1].text if ended else ""  # type: ignore[union-attr]
