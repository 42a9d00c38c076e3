"""The lines of `codex exec --json`, and what they say about the turn.

`turn.completed` and `turn.failed` decide; an `error` before them may be one that it got over. Its usage counts the
whole conversation, so what stood there before the turn is told first, and taken off.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, by_type, events, nothing
from hiveyard.agents.shared.wording import code_of, door_said, ending, relative, status_in, summary
from hiveyard.core.errors import AgentFailed, NothingDone
from hiveyard.core.events import (
    AgentEdited,
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentRetrying,
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
from hiveyard.kit.shape import count, items, record, text
from hiveyard.kit.text import one_line

_AGAIN = re.compile(r"Reconnecting\.\.\. (\d{1,6})/\d{1,6} ?")
_LOGGED = re.compile(r"^(?:warning: |WARNING: |\d{4}-\d\d-\d\dT\S+ +[A-Z]+ ).*\n?", re.MULTILINE)
_SHELL_LIMIT = 64 << 10


class CodexParser:
    """One turn of codex."""

    def __init__(self) -> None:
        self._workdir = ""
        self._conversation: str | None = None
        self._before = Usage(cost_usd=None)
        self._called: set[str] = set()
        self._worked = False
        self._said = ""
        self._completed = False
        self._error = ""

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return events(line, by_type(self._readers()))

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        code, reason = self._outcome(exit_code, _LOGGED.sub("", stderr))
        return Verdict(not code, code, reason, self._conversation)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "workdir": self._placed,
            "event_msg": self._counted_before,
            "thread.started": self._started,
            "turn.started": nothing,
            "turn.completed": self._ended,
            "turn.failed": self._failed,
            "error": self._troubled,
            "item.started": self._item,
            "item.updated": self._item,
            "item.completed": self._item,
        }

    # --- lines ------------------------------------------------------------------------------------------------------

    def _placed(self, said: JSON) -> Iterator[AgentEvent]:
        self._workdir = text(said.get("path"))
        return iter(())

    def _counted_before(self, said: JSON) -> Iterator[AgentEvent]:
        self._before = _usage(record(said, "payload", "info", "total_token_usage"))
        return iter(())

    def _started(self, said: JSON) -> Iterator[AgentEvent]:
        self._conversation = text(said.get("thread_id"))
        yield AgentStarted(conversation=self._conversation)

    def _ended(self, said: JSON) -> Iterator[AgentEvent]:
        self._completed, self._error = True, ""
        yield AgentUsage(usage=_less(_usage(record(said, "usage")), self._before))
        yield AgentEnded(is_error=False, text=clip(self._said), reason="completed")

    def _failed(self, said: JSON) -> Iterator[AgentEvent]:
        self._completed, self._error = False, _words(record(said, "error"))
        yield AgentEnded(is_error=True, text=clip(self._error), reason="failed")

    def _troubled(self, said: JSON) -> Iterator[AgentEvent]:
        words = _words(said)
        if again := _AGAIN.match(words):
            self._error = words[again.end() :].removeprefix("(").removesuffix(")")
            yield AgentRetrying(attempt=int(again[1]), message=one_line(words))
        else:
            self._error = words
            yield AgentError(message=clip(words))

    # --- items ------------------------------------------------------------------------------------------------------

    def _item(self, said: JSON) -> Iterator[AgentEvent] | None:
        item, done = record(said, "item"), said.get("type") == "item.completed"
        kind = text(item.get("type"))
        if kind in ("agent_message", "reasoning", "error", "todo_list"):
            return self._spoken(kind, item) if done else iter(())
        told = self._tool(kind, item)
        return None if told is None else self._used(item, *told, done=done)

    def _spoken(self, kind: str, item: JSON) -> Iterator[AgentEvent]:
        words = text(item.get("text"))
        if kind == "error":  # a warning about its own set-up, mostly
            yield AgentError(message=clip(text(item.get("message"))))
        elif kind == "reasoning" and words.strip():
            yield AgentThinking(text=clip(words))
        elif kind == "agent_message" and words.strip():
            self._said = words
            yield AgentText(text=clip(words))

    def _tool(self, kind: str, item: JSON) -> tuple[str, str] | None:
        """The name of a tool and a line about its call; None for a kind of item that is not known here."""
        if kind == "command_execution":
            return "shell", summary("shell", {"command": _command(text(item.get("command")))})
        if kind == "file_change":
            paths = [relative(text(record(change).get("path")), self._workdir) for change in items(item.get("changes"))]
            return "apply_patch", summary("apply_patch", {"description": ", ".join(paths[:20])})
        if kind == "mcp_tool_call":
            name = f"{text(item.get('server'))}.{text(item.get('tool'))}"
            return name, summary(name, record(item, "arguments"))
        if kind == "web_search":
            return kind, summary(kind, item)
        return None

    def _used(self, item: JSON, tool: str, line: str, *, done: bool) -> Iterator[AgentEvent]:
        call = text(item.get("id"))
        if call not in self._called:
            self._called.add(call)
            yield AgentToolCalled(call=call, tool=tool, summary=line)
        if not done:
            return
        wrong = text(item.get("status")) not in ("completed", "")
        self._worked = self._worked or not wrong
        yield AgentToolReturned(call=call, tool=tool, output=clip(_output(item), OUTPUT_LIMIT), is_error=wrong)
        if not wrong:
            for change in map(record, items(item.get("changes"))):
                yield AgentEdited(path=relative(text(change.get("path")), self._workdir), call=call)

    # --- the outcome ------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        """An error code with its reason; two empty strings are a success."""
        if not self._completed:
            return self._without_end(exit_code, stderr)
        if exit_code != 0:
            return AgentFailed.code, f"codex said that it was done, but {ending('it', exit_code, stderr)}"
        if not self._worked and not self._said:
            return NothingDone.code, "codex used no tool and said nothing"
        return "", ""

    def _without_end(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        if self._error:
            if self._error.startswith("Incomplete response returned, reason: max_output_tokens"):
                return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
            return code_of(status_in(self._error), self._error), one_line(door_said(self._error))
        if exit_code == 0 and not self._worked and not self._said:
            return NothingDone.code, f"{ending('codex', 0, stderr)}, and did nothing"
        reason = ending("codex", exit_code, stderr)
        if not stderr.strip():
            reason += ", before its turn was over"
        return (code_of(0, stderr) if exit_code else AgentFailed.code), reason


def _words(said: JSON) -> str:
    """An error's message; the answer to a bad request comes as the JSON that it is."""
    message = text(said.get("message"))
    if message.startswith("{"):
        try:
            inner = text(record(msgspec.json.decode(message.encode()), "error").get("message"))
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            inner = ""
        message = inner or message
    return message.strip() or "an error without words"


def _command(line: str) -> str:
    """A command line as the model gave it, without the shell that codex puts around it."""
    if len(line) > _SHELL_LIMIT:
        return line
    try:
        words = shlex.split(line)
    except ValueError:
        return line
    return words[2] if len(words) == 3 and words[1] in ("-lc", "-c") else line


def _output(item: JSON) -> str:
    found = text(item.get("aggregated_output"))
    if not found:
        blocks = map(record, items(record(item, "result").get("content")))
        found = "\n".join(text(block.get("text")) for block in blocks)
    return found or text(record(item, "error").get("message"))


def _usage(used: JSON) -> Usage:
    read, written = count(used.get("cached_input_tokens")), count(used.get("cache_write_input_tokens"))
    return Usage(
        input_tokens=max(0, count(used.get("input_tokens")) - read - written),
        output_tokens=count(used.get("output_tokens")),
        cache_read_tokens=read,
        cache_write_tokens=written,
        cost_usd=None,
    )


def _less(after: Usage, before: Usage) -> Usage:
    return Usage(
        input_tokens=max(0, after.input_tokens - before.input_tokens),
        output_tokens=max(0, after.output_tokens - before.output_tokens),
        cache_read_tokens=max(0, after.cache_read_tokens - before.cache_read_tokens),
        cache_write_tokens=max(0, after.cache_write_tokens - before.cache_write_tokens),
        cost_usd=None,
    )
