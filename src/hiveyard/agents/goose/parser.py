"""The lines of `goose run --output-format stream-json`, and the turn's outcome.

goose always exits with 0. Its own messages appear in place of the model's; they differ by the missing metadata about
the model. Text arrives in pieces that share a message's id. Its usage counts the whole conversation. The usage before
the turn is therefore printed first, and subtracted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, by_type, events, ignore
from hiveyard.agents.shared.wording import (
    GOOSE_ERROR_HEAD,
    code_of,
    created,
    door_message,
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
_START_ERROR = re.compile(rb" {0,8}error: (?:Error )?(.*)")  # on stdout, if it cannot start
_EMPTY = "The model returned an empty response"
_ERROR_TAILS = ("Please retry if you", "Please resend your")


class GooseParser:
    """The parser of one turn of goose."""

    def __init__(self) -> None:
        self._workdir = ""
        self._conversation: str | None = None
        self._previous: JSON = {}
        self._piece_of: tuple[str, str] = ("", "")  # kind and message id of the collected pieces
        self._pieces: list[str] = []
        self._size = 0
        self._calls: dict[str, tuple[str, AgentEdited | None]] = {}
        self._message_ids: set[str] = set()
        self._worked = False
        self._last_text = ""
        self._last_kind = ""  # content of the last message: `text`, `call`, `answer`
        self._cut = False
        self._error = ""
        self._interrupted = False
        self._complete = False

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        # An interrupted goose prints a greeting, and continues on the same line.
        if not line.startswith(b"{") and (at := line.find(_COMPLETE)) > 0:
            self._interrupted = True
            line = line[at:]
        if wrong := _START_ERROR.match(line):
            return list(self._error_line({"error": decode(wrong[1])}))
        return events(line, by_type(self._readers()))

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        code, reason = self._outcome(exit_code, stderr)
        return Verdict(not code, code, reason, self._conversation)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "session": self._started,
            "message": self._message,
            "notification": ignore,
            "model_change": ignore,
            "error": self._error_line,
            "complete": self._ended,
        }

    # --- lines ------------------------------------------------------------------------------------------------------

    def _started(self, entry: JSON) -> Iterator[AgentEvent]:
        self._workdir, self._conversation = text(entry.get("workdir")), text(entry.get("name"))
        named = (found for found in map(record, items(entry.get("former"))) if found.get("name") == self._conversation)
        self._previous = next(named, {})
        yield AgentStarted(conversation=self._conversation)

    def _message(self, entry: JSON) -> Iterator[AgentEvent]:
        message = record(entry, "message")
        name, asked = text(message.get("id")), bool(record(message, "metadata", "inference"))
        if asked:
            self._message_ids.add(name)
        if record(message, "metadata").get("outputTokenLimitReached") is True:
            self._cut = True
        for block in map(record, items(message.get("content"))):
            if message.get("role") != "assistant":
                yield from self._tool_response(block)
            elif asked:
                yield from self._model_block(name, block)
            else:
                yield from self._goose_block(block)

    def _model_block(self, name: str, block: JSON) -> Iterator[AgentEvent]:
        kind = text(block.get("type"))
        if kind in ("text", "thinking"):
            yield from self._piece((kind, name), text(block.get(kind)))
        elif kind == "toolRequest":
            yield from self._flush()
            self._last_kind = "call"
            yield from self._called(block)

    def _goose_block(self, block: JSON) -> Iterator[AgentEvent]:
        """Process a message of the program itself: an error, an empty answer, a shortened conversation."""
        yield from self._flush()
        words = text(block.get("text")) or text(block.get("message")) or text(block.get("msg"))
        if not words.strip():
            return
        if block.get("type") == "systemNotification":
            return
        self._error = _error_text(words)
        yield AgentError(message=clip(self._error), code=text(block.get("kind")))

    def _error_line(self, entry: JSON) -> Iterator[AgentEvent]:
        yield from self._flush()
        self._error = _error_text(text(entry.get("error")) or "an error without a message")
        yield AgentError(message=clip(self._error))

    def _ended(self, entry: JSON) -> Iterator[AgentEvent]:
        yield from self._flush()
        self._complete = True
        yield AgentUsage(usage=self._usage(entry))
        wrong = bool(self._error) or self._interrupted or self._cut or self._last_kind != "text"
        words = self._error or self._last_text
        yield AgentEnded(is_error=wrong, text=clip(words), reason="interrupted" if self._interrupted else "")

    # --- the model's texts, in pieces -------------------------------------------------------------------------------

    def _piece(self, which: tuple[str, str], words: str) -> Iterator[AgentEvent]:
        if which != self._piece_of or self._size > OUTPUT_LIMIT:
            yield from self._flush()
        self._piece_of = which
        if words:
            self._pieces.append(words)
            self._size += len(words)
        if which[0] == "text" and words.strip():
            self._last_kind, self._error = "text", ""

    def _flush(self) -> Iterator[AgentEvent]:
        words, self._pieces, self._size = "".join(self._pieces), [], 0
        if not words.strip():
            return
        if self._piece_of[0] == "thinking":
            yield AgentThinking(text=clip(words))
        else:
            self._last_text = words
            yield AgentText(text=clip(words))

    # --- tools ------------------------------------------------------------------------------------------------------

    def _called(self, block: JSON) -> Iterator[AgentEvent]:
        call, asked = text(block.get("id")), record(block, "toolCall", "value")
        tool, given = text(asked.get("name")), record(asked, "arguments")
        self._calls[call] = tool, _possible_edit(call, tool, given, self._workdir)
        yield AgentToolCalled(call=call, tool=tool, summary=summary(tool, given, self._workdir))

    def _tool_response(self, block: JSON) -> Iterator[AgentEvent]:
        if block.get("type") != "toolResponse":
            return
        yield from self._flush()
        self._last_kind = "answer"
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

    def _usage(self, entry: JSON) -> Usage:
        before, spent = record(self._previous, "accumulated_usage"), number(entry.get("cost_usd"))

        def since(name: str) -> int:
            return max(0, count(entry.get(name)) - count(before.get(name)))

        read, written = since("cache_read_input_tokens"), since("cache_write_input_tokens")
        cost = None if spent is None else max(0.0, spent - (number(self._previous.get("accumulated_cost")) or 0.0))
        return Usage(
            input_tokens=max(0, since("input_tokens") - read - written),
            output_tokens=since("output_tokens"),
            cache_read_tokens=read,
            cache_write_tokens=written,
            cost_usd=cost,
            requests=len(self._message_ids),
        )

    # --- the outcome ------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        """Return an error code and its reason; two empty strings mean success."""
        if self._interrupted:
            return AgentFailed.code, "goose was interrupted"
        if self._error:
            return self._error_outcome()
        if exit_code != 0:
            code = code_of(status_in(stderr), stderr) if exit_code else AgentFailed.code
            return code, ending("goose", exit_code, stderr)
        if self._cut:
            return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
        if not self._worked and not self._last_text and not self._pieces:
            return NothingDone.code, f"{ending('goose', 0, stderr)}, and did nothing"
        if not self._complete or self._last_kind != "text":
            return AgentFailed.code, "goose stopped before the model had finished"
        return "", ""

    def _error_outcome(self) -> tuple[str, str]:
        if self._error.startswith(_EMPTY):
            return NothingDone.code, one_line(self._error)
        return code_of(status_in(self._error), self._error), one_line(door_message(self._error))


def _error_text(words: str) -> str:
    """Return an error without the text that goose adds around it."""
    head, _, tail = words.strip().removeprefix(GOOSE_ERROR_HEAD).rpartition("\n\n")
    return head if head and tail.startswith(_ERROR_TAILS) else words.strip().removeprefix(GOOSE_ERROR_HEAD)


def _possible_edit(call: str, tool: str, given: JSON, workdir: str) -> AgentEdited | None:
    """Return the change that a call would make, as if its file were new."""
    path = relative(text(given.get("path")), workdir)
    if tool not in ("write", "edit") or not path:
        return None
    diff = created(path, text(given.get("content"))) if tool == "write" else ""
    return AgentEdited(path=path, diff=clip(diff), call=call)
