"""Which results the person has looked at: for each session the number of the last event that was on a screen."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

import msgspec

from hiveyard.kit.files import write_atomic

log = logging.getLogger(__name__)


class _State(msgspec.Struct, kw_only=True):
    since: int
    seen: dict[str, int] = {}


class Seen:
    """The record, in a file. Results from before its first use count as seen."""

    def __init__(self, file: Path, since: int) -> None:
        self._file = file
        try:
            self._state = msgspec.json.decode(file.read_bytes(), type=_State)
        except FileNotFoundError:
            self._state = _State(since=since)
            self._write()
        except (OSError, msgspec.MsgspecError) as error:
            log.warning("%s cannot be read, and all results count as seen: %s", file, error)
            self._state = _State(since=since)

    def has(self, session: str, seq: int) -> bool:
        """Return whether the event `seq` of a session was looked at."""
        return seq <= max(self._state.since, self._state.seen.get(session, 0))

    def mark(self, session: str, seq: int) -> None:
        """Record that a session was looked at, up to an event."""
        if not self.has(session, seq):
            self._state.seen[session] = seq
            self._write()

    def keep_only(self, sessions: Collection[str]) -> None:
        """Forget sessions that were removed. The file is written with the next mark."""
        self._state.seen = {id: seq for id, seq in self._state.seen.items() if id in sessions}

    def _write(self) -> None:
        write_atomic(self._file, msgspec.json.encode(self._state), mode=0o600, durable=False)
