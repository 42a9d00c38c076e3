"""Helpers for sessions whose agent is the puppet: spawn them, send prompts, wait for them."""

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
"""Seconds. The first VM makes a template, which takes minutes under emulation."""


class FullDiskLog(EventLog):
    """An event log on a full disk."""

    async def record(self, session: str, *bodies: AnyBody, turn: int | None = None) -> None:
        raise StoreUnusable("the disk is full")


async def spawned(engine: Engine, repo: Path, **more: object) -> str:
    """Return a running session of the puppet."""
    id = await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME, **more))  # type: ignore[arg-type]
    await wait_until(engine, id, lambda view: view.status == "running")
    return id


async def spawned_with_snapshot(engine: Engine, repo: Path, **more: object) -> str:
    """Return a session that remembers apple, with the snapshot `early` taken after that."""
    id = await spawned(engine, repo, **more)
    await run_turn(engine, id, "remember apple")
    await engine.snapshots.take(id, "early")
    return id


async def wait_until(engine: Engine, id: str, true: Callable[[SessionView], bool]) -> SessionView:
    with anyio.fail_after(PATIENCE):
        while not true(view := await engine.sessions.view(id)):
            assert view.status not in ("failed",), view
            await anyio.sleep(0.05)
    return view


async def events(engine: Engine, id: str, *types: str) -> list[Event]:
    found = await engine.events(id, after=0, limit=10_000)
    return [event for event in found if not types or event.body.type in types]


async def run_turn(engine: Engine, id: str, prompt: str) -> str:
    """Send a prompt and wait for the end of its turn; return the agent's last message."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                return await answer(engine, id, await engine.sessions.send(id, prompt))
            except SessionNotRunning as error:
                # A new daemon has not found the machine yet.
                assert "not ready yet" in error.message
                await anyio.sleep(0.05)


async def answer(engine: Engine, id: str, turn: int) -> str:
    """Return the agent's last message of a turn."""
    with anyio.fail_after(PATIENCE):
        while not [event for event in await events(engine, id, "turn.ended") if event.turn == turn]:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    ended = [event.body for event in await events(engine, id, "agent.ended") if event.turn == turn]
    return ended[-1].text if ended else ""  # type: ignore[union-attr]
