"""Tapes: recorded answers of models in a file, replayed without a network.

A tape is a file of JSON lines. The first is its header: `{"tape": 1, "made": "2026-11-21T05:00:00Z"}`. Each further
line is one request with its answer:

    {"ask": {"method": "POST", "path": "/anthropic/v1/messages", "model": "…", "stream": true, "tools": true,
             "turn": 1, "round": 0, "text": "make the failing test pass", "digest": "…", "results": "…", "system": "…"},
     "status": 200, "headers": [["content-type", "text/event-stream"]], "complete": true,
     "chunks": [[12, "event: message_start\\n…"], [40, {"b64": "…"}]]}

`turn` counts the user's messages, `round` the model's answers since the last one. `text` is the beginning of the user's
last message without dates, ids, reminders and similar; `digest` is of the complete message. `results` is a digest of
the tools' results since the last answer. `chunks` are [milliseconds since the answer began, text or base64]. A tape has
no keys. An incomplete line at the end, from a crash, is ignored.

A request is found by its content, not by its position in the file: the same method, path, kind (streamed, with tools),
text and round. Turn, model and tool results only select among several matches; then the last good answer is taken. So a
request may be repeated, and tools may return other paths and times than when it was recorded. Requests without tools
are an agent's side requests: for them a similar text or system prompt is enough. Requests to count tokens match any
recorded count.
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
from hiveyard.door.reply import Progress, Reply
from hiveyard.kit.files import open_regular
from hiveyard.kit.text import one_line

VERSION = 1
LONGEST_LINE = 192 << 20
_TEXT = 2000
_SIMILAR = 0.6
_COMPARED = 100
_T = TypeVar("_T", bound=msgspec.Struct)


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a tape."""

    tape: int
    made: str = ""


class Ask(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of a request by which it is found again."""

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
        """Return a description for an error message."""
        kind = "with tools" if self.tools else "without tools"
        return f"{self.method} {self.path} {kind}, round {self.round} of “{one_line(self.text, 80)}”"


class Binary(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that are not text."""

    b64: str


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A request with its answer."""

    ask: Ask
    status: int
    headers: tuple[tuple[str, str], ...] = ()
    complete: bool = True
    chunks: tuple[tuple[float, str | Binary], ...] = ()

    @property
    def good(self) -> bool:
        return self.complete and self.status < 400


def ask_of(asked: ModelRequest, mask: Callable[[str], str] = str) -> Ask:
    """Return the content of a request. A `GET` has only a path."""
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


def encode_chunk(data: bytes) -> str | Binary:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return Binary(b64=base64.b64encode(data).decode())


def decode_chunk(data: str | Binary) -> bytes:
    return data.encode() if isinstance(data, str) else base64.b64decode(data.b64, validate=True)


class Tape:
    """A source of answers from a tape. With `real_time` the chunks come at their recorded pace, else at once."""

    def __init__(self, entries: Sequence[Entry], *, name: str = "the tape", real_time: bool = False) -> None:
        self._entries = tuple(entries)
        self._name = name
        self._real_time = real_time
        self._reading = anyio.CapacityLimiter(1)

    def __len__(self) -> int:
        return len(self._entries)

    @classmethod
    def load(cls, path: Path, *, real_time: bool = False) -> Tape:
        """Read a tape. Raises BadTape with the line number."""
        try:
            with os.fdopen(open_regular(path), "rb") as file:
                entries, _ = scan(file, path)
        except OSError as error:
            raise BadTape(f"the tape {path} cannot be read: {error.strerror}") from error
        return cls(entries, name=path.name, real_time=real_time)  # a guest sees the name: no host path

    @asynccontextmanager
    async def ask(self, asked: ModelRequest, _progress: Progress) -> AsyncIterator[Reply]:
        """Answer from the tape: see `Answers.ask`."""
        # In a thread, since it may take a second; one at a time, so that the event loop can run in between.
        entry = self.find(await anyio.to_thread.run_sync(ask_of, asked, limiter=self._reading))
        chunks = self._play(entry)
        try:
            yield Reply(status=entry.status, headers=entry.headers, chunks=chunks, source="tape")
        finally:
            await chunks.aclose()

    def find(self, ask: Ask) -> Entry:
        """Return the matching entry. Raises NotOnTape with the request and the nearest recorded one."""
        same_path = [entry for entry in self._entries if entry.ask.path == ask.path and entry.ask.method == ask.method]
        found = [entry for entry in same_path if _matches(entry.ask, ask)]
        if found:
            return max(enumerate(found), key=lambda one: (*_fit(one[1], ask), one[0]))[1]
        nearest = max(same_path[-_COMPARED:], key=lambda entry: _nearness(entry.ask, ask), default=None)
        near = f"; the nearest is {nearest.ask.shown()}" if nearest else "; nothing is recorded for this path"
        raise NotOnTape(f"{self._name} has no answer to {ask.shown()}{near}", hint="record it again with --record")

    async def _play(self, entry: Entry) -> AsyncGenerator[bytes, None]:
        begin = anyio.current_time()
        for milliseconds, data in entry.chunks:
            if self._real_time:
                await anyio.sleep_until(begin + milliseconds / 1000)
            yield decode_chunk(data)
        if not entry.complete:
            raise UpstreamFailed(f"the answer on {self._name} was cut when it was recorded")


def scan(file: IO[bytes], path: Path) -> tuple[list[Entry], int]:
    """Return the entries of a tape, and the offset after the last complete one. Raises BadTape."""
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
            break  # incomplete because of a crash
        if line.strip():
            entries.append(_entry(line, path, number))
        end += len(line)
    return entries, end


def _entry(line: bytes, path: Path, number: int) -> Entry:
    entry = _decode(line, Entry, path, number)
    try:
        for _, data in entry.chunks:
            decode_chunk(data)
    except (binascii.Error, UnicodeError) as error:
        raise BadTape(f"{path}, line {number}: a chunk is damaged: {error}") from None
    if not 100 <= entry.status <= 599:
        raise BadTape(f"{path}, line {number}: {entry.status} is not an HTTP status")
    return entry


def _decode(line: bytes, shape: type[_T], path: Path, number: int) -> _T:
    try:
        return msgspec.json.decode(line, type=shape)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        what = "is not a tape" if number == 1 else "is damaged"
        raise BadTape(f"{path} {what}: line {number}: {str(error)[:200]}") from None


def _matches(known: Ask, ask: Ask) -> bool:
    """Whether a recorded request of the same method and path matches."""
    if ask.path.endswith("/count_tokens"):
        return True
    if (known.stream, known.tools) != (ask.stream, ask.tools):
        return False
    if known.digest == ask.digest:
        return known.round == ask.round
    return not ask.tools and known.round == ask.round and _is_similar(known, ask)


def _is_similar(known: Ask, ask: Ask) -> bool:
    """Whether two side requests are similar: the same system prompt, or without one a similar text."""
    if known.system or ask.system:
        return known.system == ask.system
    return _similarity(known.text, ask.text) >= _SIMILAR


def _fit(entry: Entry, ask: Ask) -> tuple[bool, ...]:
    """Rate how well a matching entry fits. The first difference decides."""
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


def _nearness(known: Ask, ask: Ask) -> tuple[float, float, int]:
    return (
        (known.stream == ask.stream) + (known.tools == ask.tools),
        _similarity(known.text, ask.text),
        -abs(known.round - ask.round),
    )


def _similarity(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a[:300], b[:300], autojunk=False).ratio()
