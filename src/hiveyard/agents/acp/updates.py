"""The updates of the Agent Client Protocol during a turn: pieces of text, tool calls, and cost."""

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

_MAX_CALLS = 10_000
_MAX_SIZE = 64 << 20
"""The number of calls of one turn that are remembered, and the total size of their texts in characters."""


@dataclass(slots=True)
class Call:
    """A tool call, as far as it is known. It arrives in several updates."""

    id: str
    tool: str = ""
    title: str = ""
    summary: str = ""
    input: JSON = field(default_factory=dict)
    edits: dict[str, str] = field(default_factory=dict)
    size: int = 0
    reported: bool = False
    done: bool = False


class Updates:
    """The updates of one conversation, turn by turn."""

    def __init__(self, workdir: str) -> None:
        self._workdir = workdir
        self._calls: dict[str, Call] = {}
        self._size = 0
        self._pieces: list[str] = []
        self._pieces_size = 0
        self._kind: type[AgentText | AgentThinking] = AgentText
        self._cost = 0.0
        self._cost_before = 0.0
        self._usage: Usage | None = None
        self._last_text = ""
        self._message = ""

    def start_turn(self) -> None:
        """Reset the state of the previous turn."""
        self._calls.clear()
        self._size = 0
        self._usage = None
        self._last_text = ""
        self._cost_before = self._cost

    def end_turn(self) -> Iterator[AgentEvent]:
        """Return the remaining events of a turn."""
        yield from self._flush()
        if self._usage is not None:
            yield AgentUsage(usage=self._usage)

    def starts_work(self, update: object) -> bool:
        """Return whether an update shows that a turn is running. A late update belongs to a known message or call."""
        if isinstance(update, schema.AgentMessageChunk | schema.AgentThoughtChunk):
            return not update.message_id or text(update.message_id) != self._message
        return (
            isinstance(update, schema.ToolCallStart | schema.ToolCallProgress)
            and text(update.tool_call_id) not in self._calls
        )

    def last_text(self) -> str:
        """Return the last text of this turn."""
        return clip("".join(self._pieces)) if self._pieces and self._kind is AgentText else self._last_text

    def feed(self, update: object) -> Iterator[AgentEvent]:
        if isinstance(update, schema.AgentMessageChunk):
            yield from self._piece(AgentText, update)
        elif isinstance(update, schema.AgentThoughtChunk):
            yield from self._piece(AgentThinking, update)
        elif isinstance(update, schema.ToolCallStart | schema.ToolCallProgress):
            yield from self._flush()
            yield from self._call_update(update)
        elif isinstance(update, schema.UsageUpdate) and update.cost and update.cost.currency == "USD":
            self._cost = max(self._cost, number(update.cost.amount) or 0.0)

    def permission_asked(self, update: schema.ToolCallUpdate) -> Iterator[AgentEvent]:
        """Report the call of a permission request, unless it was reported before."""
        yield from self._flush()
        call = self._call_of(update)
        yield from self._report(call)

    def call(self, id: str) -> Call:
        return self._calls.get(text(id), Call(""))

    def set_usage(self, usage: schema.Usage | None, quota: Mapping[str, object]) -> None:
        """Set the turn's usage from the answer to its prompt, or from gemini's own field `quota`.

        The cost is the difference of the reported totals."""
        if usage is None:
            if quota:
                tokens = {name: count(quota.get(name)) for name in ("input_tokens", "output_tokens")}
                self._usage = Usage(**tokens, cost_usd=None)
            return
        cached, written = usage.cached_read_tokens or 0, usage.cached_write_tokens or 0
        self._usage = Usage(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens + (usage.thought_tokens or 0),
            cache_read_tokens=cached,
            cache_write_tokens=written,
            cost_usd=self._cost - self._cost_before if self._cost else None,
        )

    # --- texts ------------------------------------------------------------------------------------------------------

    def _piece(self, kind: type[AgentText | AgentThinking], chunk: schema.ContentChunk) -> Iterator[AgentEvent]:
        if kind is not self._kind:
            yield from self._flush()
        self._kind = kind
        self._message = text(chunk.message_id)[:200]
        words = text(chunk.content.text) if isinstance(chunk.content, schema.TextContentBlock) else ""
        if words and self._pieces_size < 2 * TEXT_LIMIT:
            self._pieces.append(words)
            self._pieces_size += len(words)

    def _flush(self) -> Iterator[AgentEvent]:
        words, self._pieces, self._pieces_size = "".join(self._pieces), [], 0
        if words.strip():
            if self._kind is AgentText:
                self._last_text = clip(words)
            yield self._kind(text=clip(words))

    # --- tool calls -------------------------------------------------------------------------------------------------

    def _call_update(self, update: schema.ToolCallStart | schema.ToolCallProgress) -> Iterator[AgentEvent]:
        call = self._call_of(update)
        # Many programs begin with an empty call and describe it in the next update.
        if update.status == "in_progress":
            yield from self._report(call)
        if update.status in ("completed", "failed") and not call.done:
            call.done = True
            yield from self._report(call)
            yield from self._result(call, update)

    def _call_of(self, update: schema.ToolCall | schema.ToolCallUpdate) -> Call:
        id = text(update.tool_call_id)
        call = self._calls.setdefault(id, Call(id))
        title = text(update.title) or call.title
        self._add_size(call, len(title) - len(call.title) if call.size else len(id) + len(title))
        call.title = title
        call.tool = call.tool or _tool(update.kind or "", call.title)
        if isinstance(update.raw_input, dict) and update.raw_input:
            self._add_size(call, len(msgspec.json.encode(update.raw_input)) - len(msgspec.json.encode(call.input)))
            call.input = update.raw_input
        elif not call.input and update.locations:
            call.input = {"path": text(update.locations[0].path)}
        for one in update.content or ():
            if isinstance(one, schema.FileEditToolCallContent):
                path = relative(text(one.path), self._workdir)
                diff = changed(path, text(one.old_text) or None, text(one.new_text))
                self._add_size(call, len(path) + len(diff) - len(call.edits.get(path, "")))
                call.edits[path] = diff
        from_input = summary_of(call.tool, call.input, self._workdir)
        call.summary = from_input if ":" in from_input else one_line(call.title, 200) or from_input
        return call

    def _add_size(self, call: Call, size: int) -> None:
        """Add to the size of a call. If the total is too large, the oldest calls are forgotten."""
        if self._calls.get(call.id) is not call:
            return  # it was forgotten because of its own size
        call.size += size
        self._size += size
        while self._calls and (len(self._calls) > _MAX_CALLS or self._size > _MAX_SIZE):
            self._size -= self._calls.pop(next(iter(self._calls))).size

    def _report(self, call: Call) -> Iterator[AgentEvent]:
        if not call.reported:
            call.reported = True
            yield AgentToolCalled(call=call.id, tool=call.tool, summary=call.summary)

    def _result(self, call: Call, update: schema.ToolCallStart | schema.ToolCallProgress) -> Iterator[AgentEvent]:
        failed = update.status == "failed"
        output = _words(update.content or ()) or _raw(update.raw_output)
        yield AgentToolReturned(call=call.id, tool=call.tool, output=clip(output, OUTPUT_LIMIT), is_error=failed)
        if not failed:
            for path, diff in (call.edits or _assumed_edits(call, self._workdir)).items():
                yield AgentEdited(path=path, diff=clip(diff), call=call.id)


def _tool(kind: str, title: str) -> str:
    """Return a tool's name: its kind, otherwise the beginning of the call's title."""
    return kind if kind not in ("", "other") else one_line(re.split(r"[·:(]", title, maxsplit=1)[0].strip(), 60)


def _assumed_edits(call: Call, workdir: str) -> Mapping[str, str]:
    """Return the file that a call changed, for programs that do not report the change itself."""
    paths = [text(call.input.get(key)) for key in ("file_path", "filePath", "filepath", "path")]
    return {relative(path, workdir): "" for path in paths if path} if call.tool in ("edit", "write") else {}


def _words(content: Sequence[object]) -> str:
    blocks = [one.content for one in content if isinstance(one, schema.ContentToolCallContent)]
    return "\n".join(text(block.text) for block in blocks if isinstance(block, schema.TextContentBlock))


def _raw(output: object) -> str:
    if isinstance(output, str):
        return text(output)
    fields: Mapping[str, object] = record(output)
    if found := text(fields.get("output")) or text(fields.get("error")):
        return found
    return "" if output is None else msgspec.json.encode(output).decode()
