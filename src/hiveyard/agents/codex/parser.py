"""The lines of `codex exec --json`, and the turn's outcome.

`turn.completed` and `turn.failed` decide; codex may have recovered from an `error` before them. Its usage counts the
whole conversation. The usage before the turn is therefore printed first, and subtracted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, by_type, events, ignore
from hiveyard.agents.shared.wording import code_of, door_message, ending, relative, status_in, summary
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

_RECONNECTING = re.compile(r"Reconnecting\.\.\. (\d{1,6})/\d{1,6} ?")
_LOGGED = re.compile(r"^(?:warning: |WARNING: |\d{4}-\d\d-\d\dT\S+ +[A-Z]+ ).*\n?", re.MULTILINE)
_SHELL_LIMIT = 64 << 10


class CodexParser:
    """The parser of one turn of codex."""

    def __init__(self) -> None:
        self._workdir = ""
        self._conversation: str | None = None
        self._previous_usage = Usage(cost_usd=None)
        self._called: set[str] = set()
        self._worked = False
        self._last_text = ""
        self._completed = False
        self._error = ""

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return events(line, by_type(self._readers()))

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        code, reason = self._outcome(exit_code, _LOGGED.sub("", stderr))
        return Verdict(not code, code, reason, self._conversation)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "workdir": self._workdir_line,
            "event_msg": self._usage_before,
            "thread.started": self._started,
            "turn.started": ignore,
            "turn.completed": self._ended,
            "turn.failed": self._failed,
            "error": self._error_line,
            "item.started": self._item,
            "item.updated": self._item,
            "item.completed": self._item,
        }

    # --- lines ------------------------------------------------------------------------------------------------------

    def _workdir_line(self, entry: JSON) -> Iterator[AgentEvent]:
        self._workdir = text(entry.get("path"))
        return iter(())

    def _usage_before(self, entry: JSON) -> Iterator[AgentEvent]:
        self._previous_usage = _usage(record(entry, "payload", "info", "total_token_usage"))
        return iter(())

    def _started(self, entry: JSON) -> Iterator[AgentEvent]:
        self._conversation = text(entry.get("thread_id"))
        yield AgentStarted(conversation=self._conversation)

    def _ended(self, entry: JSON) -> Iterator[AgentEvent]:
        self._completed, self._error = True, ""
        yield AgentUsage(usage=_difference(_usage(record(entry, "usage")), self._previous_usage))
        yield AgentEnded(is_error=False, text=clip(self._last_text), reason="completed")

    def _failed(self, entry: JSON) -> Iterator[AgentEvent]:
        self._completed, self._error = False, _error_text(record(entry, "error"))
        yield AgentEnded(is_error=True, text=clip(self._error), reason="failed")

    def _error_line(self, entry: JSON) -> Iterator[AgentEvent]:
        words = _error_text(entry)
        if match := _RECONNECTING.match(words):
            self._error = words[match.end() :].removeprefix("(").removesuffix(")")
            yield AgentRetrying(attempt=int(match[1]), message=one_line(words))
        else:
            self._error = words
            yield AgentError(message=clip(words))

    # --- items ------------------------------------------------------------------------------------------------------

    def _item(self, entry: JSON) -> Iterator[AgentEvent] | None:
        item, done = record(entry, "item"), entry.get("type") == "item.completed"
        kind = text(item.get("type"))
        if kind in ("agent_message", "reasoning", "error", "todo_list"):
            return self._text_item(kind, item) if done else iter(())
        call = self._tool(kind, item)
        return None if call is None else self._tool_used(item, *call, done=done)

    def _text_item(self, kind: str, item: JSON) -> Iterator[AgentEvent]:
        words = text(item.get("text"))
        if kind == "error":  # mostly a warning about its own setup
            yield AgentError(message=clip(text(item.get("message"))))
        elif kind == "reasoning" and words.strip():
            yield AgentThinking(text=clip(words))
        elif kind == "agent_message" and words.strip():
            self._last_text = words
            yield AgentText(text=clip(words))

    def _tool(self, kind: str, item: JSON) -> tuple[str, str] | None:
        """Return a tool's name and a line about its call; None for an unknown kind of item."""
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

    def _tool_used(self, item: JSON, tool: str, line: str, *, done: bool) -> Iterator[AgentEvent]:
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
        """Return an error code and its reason; two empty strings mean success."""
        if not self._completed:
            return self._without_end(exit_code, stderr)
        if exit_code != 0:
            return AgentFailed.code, f"codex reported success, but {ending('it', exit_code, stderr)}"
        if not self._worked and not self._last_text:
            return NothingDone.code, "codex used no tool and wrote no text"
        return "", ""

    def _without_end(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        if self._error:
            if self._error.startswith("Incomplete response returned, reason: max_output_tokens"):
                return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
            return code_of(status_in(self._error), self._error), one_line(door_message(self._error))
        if exit_code == 0 and not self._worked and not self._last_text:
            return NothingDone.code, f"{ending('codex', 0, stderr)}, and did nothing"
        reason = ending("codex", exit_code, stderr)
        if not stderr.strip():
            reason += " before its turn ended"
        return (code_of(0, stderr) if exit_code else AgentFailed.code), reason


def _error_text(entry: JSON) -> str:
    """Return an error's message. The answer to a bad request is JSON."""
    message = text(entry.get("message"))
    if message.startswith("{"):
        try:
            inner = text(record(msgspec.json.decode(message.encode()), "error").get("message"))
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            inner = ""
        message = inner or message
    return message.strip() or "an error without a message"


def _command(line: str) -> str:
    """Return a command line as the model wrote it, without the shell that codex adds."""
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


def _difference(after: Usage, before: Usage) -> Usage:
    return Usage(
        input_tokens=max(0, after.input_tokens - before.input_tokens),
        output_tokens=max(0, after.output_tokens - before.output_tokens),
        cache_read_tokens=max(0, after.cache_read_tokens - before.cache_read_tokens),
        cache_write_tokens=max(0, after.cache_write_tokens - before.cache_write_tokens),
        cost_usd=None,
    )
