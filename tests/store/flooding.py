"""A program that is killed while its journal shrinks. Each acknowledged write is one line of its stdout.

python flooding.py JOURNAL FIRST: one session keeps its events, others are flooded and forgotten, numbered from FIRST.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio

from hiveyard.core import events as e
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal
from hiveyard.store.database import Store, open_store


async def _keep(store: Store, session: str) -> None:
    await store.append(session, e.TaskCreated(slug=session, request={}))
    while True:
        [event] = await store.append(session, e.AgentText(text="kept"))
        os.write(1, f"kept {event.seq}\n".encode())


async def _flood(store: Store, first: int) -> None:
    failure = e.Failure(code="internal", message="flooded", hint="")
    for number in range(first, first + 100):
        session = f"s{number}"
        await store.append(session, e.TaskCreated(slug=session, request={}), e.TaskFailed(failure=failure))
        for _ in range(4):
            await store.append(session, *(e.AgentOutput(text="x" * 65_536) for _ in range(32)))
        await store.write(lambda conn, id=session: journal.forget(conn, id))  # type: ignore[misc]
        os.write(1, f"forgot {session}\n".encode())


async def main(path: Path, first: int) -> None:
    async with open_store(path, clock=SystemClock()) as store, anyio.create_task_group() as group:
        group.start_soon(_keep, store, f"kept-{first}")
        group.start_soon(_flood, store, first)


anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
