"""Read server-sent events while they are relayed: tolerant of invalid data, with limited memory."""

from __future__ import annotations

from hiveyard.kit.lines import LineSplitter

LONGEST = 16 << 20
"""The most bytes of one event that are read. A longer one is relayed unread."""


class EventData:
    """A parser that takes bytes and returns the `data` of each complete event."""

    def __init__(self) -> None:
        self._lines = LineSplitter(limit=LONGEST)
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        events = []
        for line in self._lines.feed(chunk):
            text = line.data.removesuffix(b"\r")
            if not text:
                events += self._take()
            elif text.startswith(b"data:") and not line.cut:
                self._keep(text[5:].removeprefix(b" "))
        return events

    def finish(self) -> list[bytes]:
        """Return the last event of a stream, if the blank line after it is missing."""
        return [*self.feed(b"\n"), *self._take()]

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= LONGEST:
            self._data.append(data)

    def _take(self) -> list[bytes]:
        event = [b"\n".join(self._data)] if self._data else []
        self._data, self._size = [], 0
        return event


class EventBlocks:
    """A splitter that takes bytes and returns them cut after each event, so that single events can be left out.

    An event over `limit` bytes is returned in pieces.
    """

    def __init__(self, *, limit: int = 1 << 20) -> None:
        self._limit = limit
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        seen = max(0, len(self._held) - 3)
        self._held += chunk
        blocks = []
        while (end := _end(self._held, seen)) > 0:
            blocks.append(bytes(self._held[:end]))
            del self._held[:end]
            seen = 0
        if len(self._held) > self._limit:
            blocks.append(self.finish())
        return blocks

    def finish(self) -> bytes:
        rest = bytes(self._held)
        self._held.clear()
        return rest


def _end(data: bytearray, start: int) -> int:
    """Return the offset after the first blank line, or 0."""
    ends = [found + len(mark) for mark in (b"\n\n", b"\n\r\n") if (found := data.find(mark, start)) >= 0]
    return min(ends, default=0)
