"""Split bytes that arrive in pieces into lines of limited length."""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """A line without its newline. `end` is the stream offset after it. `cut` is the number of bytes left out at its
    end."""

    data: bytes
    end: int
    cut: int


class LineSplitter:
    """A splitter that takes bytes and returns complete lines.

    A line over `limit` bytes keeps its first `limit` bytes; `cut` counts the others. `offset` is the position of the
    first byte in the stream, so that a reader can continue where it stopped."""

    def __init__(self, *, limit: int, offset: int = 0) -> None:
        self._limit = limit
        self.offset = offset
        self._held = bytearray()
        self._cut = 0

    def feed(self, data: bytes) -> list[Line]:
        lines: list[Line] = []
        start = 0
        while (newline := data.find(b"\n", start)) >= 0:
            self._hold(data[start:newline])
            start = newline + 1
            lines.append(self._take(self.offset + start))
        self._hold(data[start:])
        self.offset += len(data)
        return lines

    def finish(self) -> list[Line]:
        """Return the rest at the end of the stream, if there is one without a newline."""
        return [self._take(self.offset)] if self._held or self._cut else []

    def _hold(self, piece: bytes) -> None:
        room = self._limit - len(self._held)
        self._cut += max(0, len(piece) - room)
        self._held += piece[:room]

    def _take(self, end: int) -> Line:
        line = Line(bytes(self._held), end, self._cut)
        self._held.clear()
        self._cut = 0
        return line
