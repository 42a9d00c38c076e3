"""Each session's `meta.json`: a copy of the journal's state for people and their tools, written after the commit.

A file that was edited into something invalid, or that a newer Hiveyard wrote, is left as it is and reported. Resuming
that session then fails with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from functools import partial

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError
from hiveyard.core.events import MachineEvent, PortEvent, SessionEvent, TurnEvent
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.view import SSH
from hiveyard.engine.workspace.directory import Meta
from hiveyard.store import journal, views
from hiveyard.store.views import PortRow, SessionRow

log = logging.getLogger(__name__)
_MOVES = SessionEvent | PortEvent | MachineEvent | TurnEvent


async def keep_metadata(resources: Resources) -> None:
    """Bring every meta.json up to date with the journal, then update each at every change. Never returns."""
    writer = _MetadataWriter(resources)
    head = await resources.event_log.read(journal.last_seq)
    await writer.write(await resources.event_log.read(partial(_read_metadata, ids=None)))
    async with aclosing(resources.event_log.store.follow_pages(after=head)) as pages:
        async for page in pages:
            moved = {event.session for event in page if isinstance(event.body, _MOVES)}
            if moved:
                await writer.write(await resources.event_log.read(partial(_read_metadata, ids=moved)))


class _MetadataWriter:
    def __init__(self, resources: Resources) -> None:
        self._r = resources
        self._failing: set[str] = set()

    async def write(self, writer: Mapping[str, Meta]) -> None:
        await anyio.to_thread.run_sync(self._write_all, writer.values())

    def _write_all(self, writer: Iterable[Meta]) -> None:
        for meta in writer:
            workspace = self._r.workspace(meta.id)
            if not workspace.exists:
                continue  # removed, or not created completely yet
            try:
                if workspace.meta() != meta:
                    workspace.write(meta)
                self._failing.discard(meta.id)
            except (HiveyardError, OSError) as error:
                if workspace.exists:
                    self._complain(meta.id, error)

    def _complain(self, id: str, error: Exception) -> None:
        """Log a warning the first time that a session's file cannot be written, not at each of its changes."""
        if id not in self._failing:
            self._failing.add(id)
            log.warning("the meta.json of session %s is not updated: %s", id, error)


def _read_metadata(conn: Connection, ids: set[str] | None) -> dict[str, Meta]:
    rows = views.sessions(conn, ids=ids)
    ports: dict[str, list[PortRow]] = {}
    for port in views.ports(conn):
        ports.setdefault(port.session, []).append(port)
    return {row.id: build_meta(row, ports.get(row.id, [])) for row in rows if ids is None or row.id in ids}


def build_meta(row: SessionRow, ports: Sequence[PortRow]) -> Meta:
    """Return the metadata that a session's directory contains."""
    return Meta(
        id=row.id,
        name=row.slug,
        repo=row.repo,
        ref=row.request.get("base"),
        branch=row.branch,
        base=row.base,
        agent=row.agent,
        provider=row.provider,
        status=row.phase.value,
        reason=row.reason,
        parent=row.parent,
        port=next((port.host_port for port in ports if port.guest_port == SSH), None),
        created=row.created_at,
        updated=row.updated_at,
    )
