"""Tapes: what a model answered, kept in a file, and given again with no network.

A tape is JSON lines. The first says what it is: `{"tape": 1, "made": "2026-11-21T05:00:00Z"}`. Each further line is one
request with its answer:

    {"ask": {"method": "POST", "path": "/anthropic/v1/messages", "model": "…", "stream": true, "tools": true,
             "turn": 1, "round": 0, "text": "make the failing test pass", "digest": "…", "results": "…", "system": "…"},
     "status": 200, "headers": [["content-type", "text/event-stream"]], "complete": true,
     "chunks": [[12, "event: message_start\\n…"], [40, {"b64": "…"}]]}

`turn` counts what a person said, `round` the model's answers since then, `text` is the last that a person said with
dates, ids, reminders and the like taken out (its beginning; `digest` is of all of it), `results` is a digest of what
tools returned since the last answer. `chunks` are [milliseconds since the answer began, text or base64]. Keys are not
on it. A line that a crash tore off at the end is ignored.

A request is looked up by what it asks, not by its place in the file: the same method, path, kind (streamed, with
tools), text and round. Turn, model and tool results only choose between several that fit; then the last good answer
wins. So a request may come again, and tools may return other paths and times than they did. Requests without tools are
an agent's side errands: there, a text or a system prompt that is alike is enough. Token counts answer whatever is
counted.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TypeVar

import anyio
import anyio.to_thread
import msgspec

from hiveyard.core.errors import BadTape, NotOnTape, UpstreamFailed
from hiveyard.door.model_request import ModelRequest
from hiveyard.door.reply import Passage, Reply
from hiveyard.kit.files import open_regular
from hiveyard.kit.text import one_line

VERSION = 1
LONGEST_LINE = 192 << 20
_TEXT = 2000
_ALIKE = 0.6
_COMPARED = 100
_T = TypeVar("_T", bound=msgspec.Struct)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    tape: int
    made: str = ""


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request asked for, as far as it counts for finding it again."""

    method: str
    path: str
    model: str = ""
    stream: bool = False
    tools: bool = False
    turn: int = 0
    round: int = 0
    text: str = ""
    digest: str = ""
    results: str = ""
    system: str = ""

    def shown(self) -> str:
        """For an error message."""
        kind = "with tools" if self.tools else "without tools"
        return f"{self.method} {self.path} {kind}, round {self.round} of “{one_line(self.text, 80)}”"


class Binary(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that are no text."""

    b64: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One request with its answer."""

    ask: Ask
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    complete: bool = True
    chunks: tuple[tuple[float, str | Binary], ...] = ()

    @property
    def good(self) -> bool:
        return self.complete and self.status < 400


def ask_of(asked: ModelRequest, mask: Callable[[str], str] = str) -> Ask:
    """What a request asks for. Of `GET` there is only the path."""
    path = f"/{asked.route.vendor}{asked.route.path}"
    if not asked.body:
        return Ask(method=asked.route.method, path=path)
    place = asked.place
    return Ask(
        method=asked.route.method,
        path=path,
        model=mask(asked.model),
        stream=asked.stream,
        tools=asked.tools,
        turn=place.turn,
        round=place.round,
        text=mask(place.text[:_TEXT]),
        digest=hashlib.sha256(place.text.encode("utf-8", "replace")).hexdigest()[:16],
        results=place.results,
        system=mask(asked.system),
    )


def packed(data: bytes) -> str | Binary:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Binary(b64=base64.b64encode(data).decode())


def unpacked(data: str | Binary) -> bytes:
    return data.encode() if isinstance(data, str) else base64.b64decode(data.b64, validate=True)


class Tape:
    """Answers from a tape. `real_time` gives chunks at the pace at which they came, else they come at once."""

    def __init__(self, entries: Sequence[Entry], *, name: str = "the tape", real_time: bool = False) -> None:
        self._entries = tuple(entries)
        self._name = name
        self._real_time = real_time
        self._reading = anyio.CapacityLimiter(1)

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def load(cls, path: Path, *, real_time: bool = False) -> Tape:
        """Read a tape. Raises BadTape, which names the line."""
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                entries, _ = scan(file, path)
        except OSError as error:
            raise BadTape(f"the tape {path} cannot be read: {error.strerror}") from error
        return cls(entries, name=path.name, real_time=real_time)  # a guest is told it: no host path

    @asynccontextmanager
    async def ask(self, asked: ModelRequest, _passage: Passage) -> AsyncIterator[Reply]:
        """See `Answers.ask`."""
        # In a thread, for it may take a second; one after the other, so that the event loop gets its turn.
        entry = self.find(await anyio.to_thread.run_sync(ask_of, asked, limiter=self._reading))
        chunks = self._play(entry)
        try:
            yield Reply(status=entry.status, headers=entry.headers, chunks=chunks, source="tape")
        finally:
            await chunks.aclose()

    def find(self, ask: Ask) -> Entry:
        """The entry that answers. Raises NotOnTape, which names what was looked for and what came nearest."""
        asked_here = [entry for entry in self._entries if entry.ask.path == ask.path and entry.ask.method == ask.method]
        found = [entry for entry in asked_here if _answers(entry.ask, ask)]
        if found:
            return max(enumerate(found), key=lambda one: (*_fit(one[1], ask), one[0]))[1]
        nearest = max(asked_here[-_COMPARED:], key=lambda entry: _near(entry.ask, ask), default=None)
        near = f"; the nearest is {nearest.ask.shown()}" if nearest else "; nothing at all was recorded for this path"
        raise NotOnTape(f"{self._name} has no answer to {ask.shown()}{near}", hint="record it again with --record")

    async def _play(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        begin = anyio.current_time()
        for milliseconds, data in entry.chunks:
            if self._real_time:
                await anyio.sleep_until(begin + milliseconds / 1000)
            yield unpacked(data)
        if not entry.complete:
            raise UpstreamFailed(f"the answer on {self._name} was cut when it was recorded")


def scan(file: IO[bytes], path: Path) -> tuple[list[Entry], int]:
    """The entries of a tape, and the offset after the last whole one. Raises BadTape."""
    first = file.readline(LONGEST_LINE)
    header = _decode(first, Header, path, 1)
    if header.tape > VERSION:
        raise BadTape(
            f"{path} is a tape of version {header.tape}; this Hiveyard reads up to {VERSION}",
            hint="pip install --upgrade hiveyard",
        )
    entries: list[Entry] = []
    end, number = len(first), 1
    while line := file.readline(LONGEST_LINE):
        number += 1
        if not line.endswith(b"\n") and len(line) < LONGEST_LINE:
            break  # torn off by a crash: it was never finished
        if line.strip():
            entries.append(_entry(line, path, number))
        end += len(line)
    return entries, end


def _entry(line: bytes, path: Path, number: int) -> Entry:
    entry = _decode(line, Entry, path, number)
    try:
        for _, data in entry.chunks:
            unpacked(data)
    except (binascii.Error, UnicodeError) as error:
        raise BadTape(f"{path}, line {number}: a chunk is damaged: {error}") from None
    if not 100 <= entry.status <= 599:
        raise BadTape(f"{path}, line {number}: {entry.status} is no HTTP status")
    return entry


def _decode(line: bytes, shape: type[_T], path: Path, number: int) -> _T:
    try:
        return msgspec.json.decode(line, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        what = "is no tape" if number == 1 else "is damaged"
        raise BadTape(f"{path} {what}: line {number}: {str(error)[:200]}") from None


def _answers(known: Ask, ask: Ask) -> bool:
    """Whether a recorded request is this one; method and path are the same already."""
    if ask.path.endswith("/count_tokens"):
        return True
    if (known.stream, known.tools) != (ask.stream, ask.tools):
        return False
    if known.digest == ask.digest:
        return known.round == ask.round
    return not ask.tools and known.round == ask.round and _alike(known, ask)


def _alike(known: Ask, ask: Ask) -> bool:
    """Whether two side errands are the same one: told to be the same, or asked nearly the same."""
    if known.system or ask.system:
        return known.system == ask.system
    return _similarity(known.text, ask.text) >= _ALIKE


def _fit(entry: Entry, ask: Ask) -> tuple[bool, ...]:
    """How well an entry that answers fits; the first difference decides."""
    known = entry.ask
    return (
        known.digest == ask.digest,
        known.turn == ask.turn,
        known.round == ask.round,
        known.results == ask.results,
        known.system == ask.system,
        known.model == ask.model,
        entry.good,
    )


def _near(known: Ask, ask: Ask) -> tuple[float, float, int]:
    return (
        (known.stream == ask.stream) + (known.tools == ask.tools),
        _similarity(known.text, ask.text),
        -abs(known.round - ask.round),
    )


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a[:300], b[:300], autojunk=False).ratio()
