"""A program that is killed while it appends. Each acknowledged write is one line of its stdout.

python appender.py JOURNAL FIRST: sessions are numbered from FIRST.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import anyio
from sqlalchemy import Connection

from hiveyard.core import events as e
from hiveyard.kit.clock import SystemClock
from hiveyard.store import journal
from hiveyard.store.database import Store, open_store


def _acknowledged(session: str, events: list[e.Event]) -> None:
    os.write(1, f"{session} {' '.join(str(event.seq) for event in events)}\n".encode())


async def _live(store: Store, session: str) -> None:
    machine = f"m-{session}"
    lives: list[list[e.AnyBody]] = [
        [e.TaskCreated(slug=session, request={}), e.SessionCreated(slug=session, repo="r", agent="a")],
        [e.TaskAssigned(provider="qemu", tier="vm", machine=machine), e.SessionPreparing()],
        [e.MachineBooting(machine=machine, provider="qemu")],
        [e.MachineReady(machine=machine), e.SessionRunning(), e.TaskStarted()],
        [e.TurnStarted(agent="a")],
    ]
    for bodies in lives:
        _acknowledged(session, await store.append(session, *bodies, turn=1))
    for number in range(1, 1_000_000):
        entries: list[tuple[e.AnyBody, bytes | None]] = [(e.AgentText(text=str(number)), b"%d" % number)]

        def write(
            conn: Connection, n: int = number, new: list[tuple[e.AnyBody, bytes | None]] = entries
        ) -> list[e.Event]:
            done = journal.record_many(conn, session, new, at=1.0, turn=1)
            journal.advance_output(conn, session, 1, n, since=n - 1)
            return done

        _acknowledged(session, await store.write(write))


async def main(path: Path, first: int) -> None:
    async with open_store(path, clock=SystemClock()) as store, anyio.create_task_group() as group:
        for number in range(first, first + 20):
            group.start_soon(_live, store, f"s{number}")


anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
