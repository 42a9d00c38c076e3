"""What a program of the Agent Client Protocol says while it works: pieces of text, calls of tools, and what it cost."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from acp import schema

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT
from hiveyard.agents.shared.wording import changed, relative
from hiveyard.agents.shared.wording import summary as summary_of
from hiveyard.core.events import (
    AgentEdited,
    AgentEvent,
    AgentText,
    AgentThinking,
    AgentToolCalled,
    AgentToolReturned,
    AgentUsage,
    clip,
)
from hiveyard.core.events.body import TEXT_LIMIT
from hiveyard.core.usage import Usage
from hiveyard.kit.shape import count, number, record, text
from hiveyard.kit.text import one_line

_CALLS = 10_000
_LARGEST = 64 << 20
"""Calls of one turn that are remembered, and characters of all that they were told to be."""


@dataclass(slots=True)
class Call:
    """One use of a tool, as far as it was told: it comes in pieces."""

    id: str
    tool: str = ""
    title: str = ""
    summary: str = ""
    input: JSON = field(default_factory=dict)
    edits: dict[str, str] = field(default_factory=dict)
    size: int = 0
    told: bool = False
    done: bool = False


class Updates:
    """All updates of one conversation, turn by turn."""

    def __init__(self, workdir: str) -> None:
        self._workdir = workdir
        self._calls: dict[str, Call] = {}
        self._size = 0
        self._pieces: list[str] = []
        self._held = 0
        self._kind: type[AgentText | AgentThinking] = AgentText
        self._spent = 0.0
        self._spent_before = 0.0
        self._used: Usage | None = None
        self._speech = ""
        self._message = ""

    def turn(self) -> None:
        """A turn begins."""
        self._calls.clear()
        self._size = 0
        self._used = None
        self._speech = ""
        self._spent_before = self._spent

    def end(self) -> Iterator[AgentEvent]:
        """A turn ends: what is left to say about it."""
        yield from self._flushed()
        if self._used is not None:
            yield AgentUsage(usage=self._used)

    def is_work(self, update: object) -> bool:
        """Whether it tells that a turn is at work: what comes late is of a message or a call that is known."""
        if isinstance(update, schema.AgentMessageChunk | schema.AgentThoughtChunk):
            return not update.message_id or text(update.message_id) != self._message
        return (
            isinstance(update, schema.ToolCallStart | schema.ToolCallProgress)
            and text(update.tool_call_id) not in self._calls
        )

    def last_words(self) -> str:
        """What it said last in this turn."""
        return clip("".join(self._pieces)) if self._pieces and self._kind is AgentText else self._speech

    def feed(self, update: object) -> Iterator[AgentEvent]:
        if isinstance(update, schema.AgentMessageChunk):
            yield from self._piece(AgentText, update)
        elif isinstance(update, schema.AgentThoughtChunk):
            yield from self._piece(AgentThinking, update)
        elif isinstance(update, schema.ToolCallStart | schema.ToolCallProgress):
            yield from self._flushed()
            yield from self._called(update)
        elif isinstance(update, schema.UsageUpdate) and update.cost and update.cost.currency == "USD":
            self._spent = max(self._spent, number(update.cost.amount) or 0.0)

    def asked(self, wanted: schema.ToolCallUpdate) -> Iterator[AgentEvent]:
        """It wants leave for a call, of which this is the first that is told, or not."""
        yield from self._flushed()
        call = self._known(wanted)
        yield from self._introduced(call)

    def call(self, id: str) -> Call:
        return self._calls.get(text(id), Call(""))

    def used(self, usage: schema.Usage | None, quota: Mapping[str, object]) -> None:
        """What the turn used, as the answer to its prompt has it, or what it has in that place of its own (gemini); the
        money is the difference of what was told."""
        if usage is None:
            if quota:
                tokens = {name: count(quota.get(name)) for name in ("input_tokens", "output_tokens")}
                self._used = Usage(**tokens, cost_usd=None)
            return
        cached, written = usage.cached_read_tokens or 0, usage.cached_write_tokens or 0
        self._used = Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens + (usage.thought_tokens or 0),
            cache_read_tokens=cached,
            cache_write_tokens=written,
            cost_usd=self._spent - self._spent_before if self._spent else None,
        )

    # --- what it says -----------------------------------------------------------------------------------------------

    def _piece(self, kind: type[AgentText | AgentThinking], chunk: schema.ContentChunk) -> Iterator[AgentEvent]:
        if kind is not self._kind:
            yield from self._flushed()
        self._kind = kind
        self._message = text(chunk.message_id)[:200]
        words = text(chunk.content.text) if isinstance(chunk.content, schema.TextContentBlock) else ""
        if words and self._held < 2 * TEXT_LIMIT:
            self._pieces.append(words)
            self._held += len(words)

    def _flushed(self) -> Iterator[AgentEvent]:
        words, self._pieces, self._held = "".join(self._pieces), [], 0
        if words.strip():
            if self._kind is AgentText:
                self._speech = clip(words)
            yield self._kind(text=clip(words))

    # --- what it does -----------------------------------------------------------------------------------------------

    def _called(self, update: schema.ToolCallStart | schema.ToolCallProgress) -> Iterator[AgentEvent]:
        call = self._known(update)
        # Many begin with an empty call, and tell what it is in the next update.
        if update.status == "in_progress":
            yield from self._introduced(call)
        if update.status in ("completed", "failed") and not call.done:
            call.done = True
            yield from self._introduced(call)
            yield from self._returned(call, update)

    def _known(self, update: schema.ToolCall | schema.ToolCallUpdate) -> Call:
        id = text(update.tool_call_id)
        call = self._calls.setdefault(id, Call(id))
        title = text(update.title) or call.title
        self._grown(call, len(title) - len(call.title) if call.size else len(id) + len(title))
        call.title = title
        call.tool = call.tool or _tool(update.kind or "", call.title)
        if isinstance(update.raw_input, dict) and update.raw_input:
            self._grown(call, len(msgspec.json.encode(update.raw_input)) - len(msgspec.json.encode(call.input)))
            call.input = update.raw_input
        elif not call.input and update.locations:
            call.input = {"path": text(update.locations[0].path)}
        for one in update.content or ():
            if isinstance(one, schema.FileEditToolCallContent):
                path = relative(text(one.path), self._workdir)
                diff = changed(path, text(one.old_text) or None, text(one.new_text))
                self._grown(call, len(path) + len(diff) - len(call.edits.get(path, "")))
                call.edits[path] = diff
        called = summary_of(call.tool, call.input, self._workdir)
        call.summary = called if ":" in called else one_line(call.title, 200) or called
        return call

    def _grown(self, call: Call, size: int) -> None:
        """More of it is kept; what was told first is forgotten when that is too much."""
        if self._calls.get(call.id) is not call:
            return  # it was too much itself
        call.size += size
        self._size += size
        while self._calls and (len(self._calls) > _CALLS or self._size > _LARGEST):
            self._size -= self._calls.pop(next(iter(self._calls))).size

    def _introduced(self, call: Call) -> Iterator[AgentEvent]:
        if not call.told:
            call.told = True
            yield AgentToolCalled(call=call.id, tool=call.tool, summary=call.summary)

    def _returned(self, call: Call, update: schema.ToolCallStart | schema.ToolCallProgress) -> Iterator[AgentEvent]:
        failed = update.status == "failed"
        output = _words(update.content or ()) or _raw(update.raw_output)
        yield AgentToolReturned(call=call.id, tool=call.tool, output=clip(output, OUTPUT_LIMIT), is_error=failed)
        if not failed:
            for path, diff in (call.edits or _untold(call, self._workdir)).items():
                yield AgentEdited(path=path, diff=clip(diff), call=call.id)


def _tool(kind: str, title: str) -> str:
    """What a tool is called: by its kind, or else by the beginning of what the program shows of the call."""
    return kind if kind not in ("", "other") else one_line(re.split(r"[·:(]", title, maxsplit=1)[0].strip(), 60)


def _untold(call: Call, workdir: str) -> Mapping[str, str]:
    """The file of a call that changed one, where the program does not tell how."""
    paths = [text(call.input.get(key)) for key in ("file_path", "filePath", "filepath", "path")]
    return {relative(path, workdir): "" for path in paths if path} if call.tool in ("edit", "write") else {}


def _words(content: Sequence[object]) -> str:
    blocks = [one.content for one in content if isinstance(one, schema.ContentToolCallContent)]
    return "\n".join(text(block.text) for block in blocks if isinstance(block, schema.TextContentBlock))


def _raw(output: object) -> str:
    if isinstance(output, str):
        return text(output)
    told: Mapping[str, object] = record(output)
    if found := text(told.get("output")) or text(told.get("error")):
        return found
    return "" if output is None else msgspec.json.encode(output).decode()
