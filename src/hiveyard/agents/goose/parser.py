"""The lines of `goose run --output-format stream-json`, and what they say about the turn.

It ends with exit code 0 whatever happens. What it says itself stands in the model's place, and is told from the model's
words by what it lacks: the note of who was asked. Text comes in pieces that share a message's id. Its usage counts the
whole conversation, so what stood there before the turn is told first, and taken off.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, by_type, events, nothing
from hiveyard.agents.shared.wording import (
    GOOSE_ERROR_HEAD,
    code_of,
    created,
    door_said,
    ending,
    relative,
    status_in,
    summary,
)
from hiveyard.core.errors import AgentFailed, NothingDone
from hiveyard.core.events import (
    AgentEdited,
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentStarted,
    AgentText,
    AgentThinking,
    AgentToolCalled,
    AgentToolReturned,
    AgentUsage,
    clip,
)
from hiveyard.core.ports import Verdict
from hiveyard.core.usage import Usage
from hiveyard.kit.shape import count, items, number, record, text
from hiveyard.kit.text import decode, one_line

_COMPLETE = b'{"type":"complete"'
_UNABLE = re.compile(rb" {0,8}error: (?:Error )?(.*)")  # on stdout, when it cannot even begin
_EMPTY = "The model returned an empty response"
_TAILS = ("Please retry if you", "Please resend your")


class GooseParser:
    """One turn of goose."""

    def __init__(self) -> None:
        self._workdir = ""
        self._conversation: str | None = None
        self._former: JSON = {}
        self._held: tuple[str, str] = ("", "")  # kind and message of the pieces of text that are held
        self._pieces: list[str] = []
        self._size = 0
        self._calls: dict[str, tuple[str, AgentEdited | None]] = {}
        self._messages: set[str] = set()
        self._worked = False
        self._said = ""
        self._last = ""  # what the last message held: `text`, `call`, `answer`
        self._cut = False
        self._error = ""
        self._interrupted = False
        self._complete = False

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        # An interrupted goose greets the person who is not there, and goes on in the same line.
        if not line.startswith(b"{") and (at := line.find(_COMPLETE)) > 0:
            self._interrupted = True
            line = line[at:]
        if wrong := _UNABLE.match(line):
            return list(self._broken({"error": decode(wrong[1])}))
        return events(line, by_type(self._readers()))

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        code, reason = self._outcome(exit_code, stderr)
        return Verdict(not code, code, reason, self._conversation)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "session": self._started,
            "message": self._message,
            "notification": nothing,
            "model_change": nothing,
            "error": self._broken,
            "complete": self._ended,
        }

    # --- lines ------------------------------------------------------------------------------------------------------

    def _started(self, said: JSON) -> Iterator[AgentEvent]:
        self._workdir, self._conversation = text(said.get("workdir")), text(said.get("name"))
        named = (found for found in map(record, items(said.get("former"))) if found.get("name") == self._conversation)
        self._former = next(named, {})
        yield AgentStarted(conversation=self._conversation)

    def _message(self, said: JSON) -> Iterator[AgentEvent]:
        message = record(said, "message")
        name, asked = text(message.get("id")), bool(record(message, "metadata", "inference"))
        if asked:
            self._messages.add(name)
        if record(message, "metadata").get("outputTokenLimitReached") is True:
            self._cut = True
        for block in map(record, items(message.get("content"))):
            if message.get("role") != "assistant":
                yield from self._answered(block)
            elif asked:
                yield from self._of_model(name, block)
            else:
                yield from self._of_goose(block)

    def _of_model(self, name: str, block: JSON) -> Iterator[AgentEvent]:
        kind = text(block.get("type"))
        if kind in ("text", "thinking"):
            yield from self._piece((kind, name), text(block.get(kind)))
        elif kind == "toolRequest":
            yield from self._spoken()
            self._last = "call"
            yield from self._called(block)

    def _of_goose(self, block: JSON) -> Iterator[AgentEvent]:
        """The program speaks itself: of errors, of an empty answer, of a conversation that it made shorter."""
        yield from self._spoken()
        words = text(block.get("text")) or text(block.get("message")) or text(block.get("msg"))
        if not words.strip():
            return
        if block.get("type") == "systemNotification":
            return
        self._error = _without_frame(words)
        yield AgentError(message=clip(self._error), code=text(block.get("kind")))

    def _broken(self, said: JSON) -> Iterator[AgentEvent]:
        yield from self._spoken()
        self._error = _without_frame(text(said.get("error")) or "an error without words")
        yield AgentError(message=clip(self._error))

    def _ended(self, said: JSON) -> Iterator[AgentEvent]:
        yield from self._spoken()
        self._complete = True
        yield AgentUsage(usage=self._used(said))
        wrong = bool(self._error) or self._interrupted or self._cut or self._last != "text"
        words = self._error or self._said
        yield AgentEnded(is_error=wrong, text=clip(words), reason="interrupted" if self._interrupted else "")

    # --- what a model says, in pieces -------------------------------------------------------------------------------

    def _piece(self, which: tuple[str, str], words: str) -> Iterator[AgentEvent]:
        if which != self._held or self._size > OUTPUT_LIMIT:
            yield from self._spoken()
        self._held = which
        if words:
            self._pieces.append(words)
            self._size += len(words)
        if which[0] == "text" and words.strip():
            self._last, self._error = "text", ""

    def _spoken(self) -> Iterator[AgentEvent]:
        words, self._pieces, self._size = "".join(self._pieces), [], 0
        if not words.strip():
            return
        if self._held[0] == "thinking":
            yield AgentThinking(text=clip(words))
        else:
            self._said = words
            yield AgentText(text=clip(words))

    # --- tools ------------------------------------------------------------------------------------------------------

    def _called(self, block: JSON) -> Iterator[AgentEvent]:
        call, asked = text(block.get("id")), record(block, "toolCall", "value")
        tool, given = text(asked.get("name")), record(asked, "arguments")
        self._calls[call] = tool, _edit(call, tool, given, self._workdir)
        yield AgentToolCalled(call=call, tool=tool, summary=summary(tool, given, self._workdir))

    def _answered(self, block: JSON) -> Iterator[AgentEvent]:
        if block.get("type") != "toolResponse":
            return
        yield from self._spoken()
        self._last = "answer"
        call, result = text(block.get("id")), record(block, "toolResult")
        given = record(result, "value")
        tool, edited = self._calls.pop(call, ("", None))
        wrong = result.get("status") != "success" or given.get("isError") is True
        self._worked = self._worked or not wrong
        parts = [text(record(part).get("text")) for part in items(given.get("content"))]
        output = "\n".join(part for part in parts if part) or text(result.get("error"))
        yield AgentToolReturned(call=call, tool=tool, output=clip(output, OUTPUT_LIMIT), is_error=wrong)
        if edited is not None and not wrong:
            new = output.startswith("Created ")
            yield edited if new else AgentEdited(path=edited.path, call=call)

    def _used(self, said: JSON) -> Usage:
        before, spent = record(self._former, "accumulated_usage"), number(said.get("cost_usd"))

        def since(name: str) -> int:
            return max(0, count(said.get(name)) - count(before.get(name)))

        read, written = since("cache_read_input_tokens"), since("cache_write_input_tokens")
        cost = None if spent is None else max(0.0, spent - (number(self._former.get("accumulated_cost")) or 0.0))
        return Usage(
            input_tokens=max(0, since("input_tokens") - read - written),
            output_tokens=since("output_tokens"),
            cache_read_tokens=read,
            cache_write_tokens=written,
            cost_usd=cost,
            requests=len(self._messages),
        )

    # --- the outcome ------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        """An error code with its reason; two empty strings are a success."""
        if self._interrupted:
            return AgentFailed.code, "goose was interrupted"
        if self._error:
            return self._of_error()
        if exit_code != 0:
            code = code_of(status_in(stderr), stderr) if exit_code else AgentFailed.code
            return code, ending("goose", exit_code, stderr)
        if self._cut:
            return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
        if not self._worked and not self._said and not self._pieces:
            return NothingDone.code, f"{ending('goose', 0, stderr)}, and did nothing"
        if not self._complete or self._last != "text":
            return AgentFailed.code, "goose stopped in the middle: the model had not said that it was done"
        return "", ""

    def _of_error(self) -> tuple[str, str]:
        if self._error.startswith(_EMPTY):
            return NothingDone.code, one_line(self._error)
        return code_of(status_in(self._error), self._error), one_line(door_said(self._error))


def _without_frame(words: str) -> str:
    """An error without what goose says around each."""
    head, _, tail = words.strip().removeprefix(GOOSE_ERROR_HEAD).rpartition("\n\n")
    return head if head and tail.startswith(_TAILS) else words.strip().removeprefix(GOOSE_ERROR_HEAD)


def _edit(call: str, tool: str, given: JSON, workdir: str) -> AgentEdited | None:
    """What a call would change, as if its file were new."""
    path = relative(text(given.get("path")), workdir)
    if tool not in ("write", "edit") or not path:
        return None
    diff = created(path, text(given.get("content"))) if tool == "write" else ""
    return AgentEdited(path=path, diff=clip(diff), call=call)
