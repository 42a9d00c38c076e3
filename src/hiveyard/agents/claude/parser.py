"""The lines of `claude -p --output-format stream-json`, and what they say about the turn.

The program has about forty types of lines and adds more; those that carry nothing for a reader are let go, unknown
ones are kept as output. `result` lines decide, but not by their subtype alone: `success` comes with `is_error` when
the API failed, and stands there too when every tool was denied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, by_type, events, nothing
from hiveyard.agents.shared.wording import code_of, created, ending, patched, relative, summary
from hiveyard.core.errors import AgentFailed, NothingDone
from hiveyard.core.events import (
    AgentEdited,
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentPermissionDenied,
    AgentRateLimited,
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
from hiveyard.kit.shape import count, items, number, record, text
from hiveyard.kit.text import one_line

_SYNTHETIC = "<synthetic>"
# Lines about the program's own life: no reader misses them, and the raw stream keeps them.
_QUIET = ("status", "thinking_tokens", "hook_started", "hook_progress", "hook_response", "compact_boundary",
          "session_state_changed", "task_started", "task_progress", "task_notification", "task_updated")  # fmt: skip


class ClaudeParser:
    """One turn of Claude Code."""

    def __init__(self) -> None:
        self._workdir = ""
        self._conversation: str | None = None
        self._tools: dict[str, str] = {}
        self._messages: set[str] = set()
        self._worked = False
        self._denied: list[str] = []
        self._usage = Usage(cost_usd=None)
        self._error = ""
        self._error_status = 0
        self._result: JSON | None = None

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return events(line, by_type(self._readers()))

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        code, reason = self._outcome(exit_code, stderr)
        return Verdict(not code, code, reason, self._conversation)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "system": self._system,
            "assistant": self._assistant,
            "user": self._user,
            "result": self._ended,
            "rate_limit_event": self._rate_limited,
            "stream_event": nothing,
        }

    # --- lines ------------------------------------------------------------------------------------------------------

    def _system(self, said: JSON) -> Iterator[AgentEvent] | None:
        kind = text(said.get("subtype"))
        if kind == "init":
            return self._init(said)
        if kind == "api_retry":
            return self._retrying(said)
        if kind == "permission_denied":
            return self._permission_denied(said)
        return iter(()) if kind in _QUIET else None

    def _init(self, said: JSON) -> Iterator[AgentEvent]:
        again = self._conversation is not None
        self._workdir = text(said.get("cwd"))
        self._conversation = text(said.get("session_id")) or self._conversation
        if not again:  # it introduces itself before each of its own rounds
            yield AgentStarted(
                conversation=self._conversation or "",
                model=text(said.get("model")),
                version=text(said.get("claude_code_version")) or text(said.get("qwen_code_version")),
            )

    def _retrying(self, said: JSON) -> Iterator[AgentEvent]:
        status = count(said.get("error_status"))
        self._error_status = status or self._error_status
        error = text(said.get("error"))
        message = one_line(f"{status or ''} {'no answer' if error in ('', 'unknown') else error}".strip())
        self._error = f"the model's API failed: {message}"
        tries = f" (try {count(said.get('attempt'))} of {count(said.get('max_retries'))})"
        yield AgentRetrying(attempt=count(said.get("attempt")), message=message + tries)

    def _permission_denied(self, said: JSON) -> Iterator[AgentEvent]:
        tool = text(said.get("tool_name"))
        self._denied.append(tool)
        yield AgentPermissionDenied(tool=tool, message=one_line(text(said.get("message"))))

    def _assistant(self, said: JSON) -> Iterator[AgentEvent]:
        message = record(said, "message")
        synthetic = message.get("model") == _SYNTHETIC
        if not synthetic:
            self._messages.add(text(message.get("id")))
        for block in map(record, items(message.get("content"))):
            kind = block.get("type")
            if kind == "text" and (words := text(block.get("text"))).strip():
                yield self._failed(said, words) if synthetic or said.get("error") else AgentText(text=clip(words))
            elif kind == "thinking" and (words := text(block.get("thinking"))).strip():
                yield AgentThinking(text=clip(words))
            elif kind in ("tool_use", "server_tool_use"):
                yield self._called(block)

    def _failed(self, said: JSON, words: str) -> AgentEvent:
        """The program speaks itself, in the model's place."""
        self._error = one_line(words)
        return AgentError(message=clip(words), code=text(said.get("error")))

    def _called(self, block: JSON) -> AgentEvent:
        call, tool = text(block.get("id")), text(block.get("name"))
        self._tools[call] = tool
        return AgentToolCalled(call=call, tool=tool, summary=summary(tool, record(block, "input"), self._workdir))

    def _user(self, said: JSON) -> Iterator[AgentEvent]:
        for block in map(record, items(record(said, "message").get("content"))):
            if block.get("type") != "tool_result":
                continue
            call = text(block.get("tool_use_id"))
            wrong = block.get("is_error") is True
            self._worked = self._worked or not wrong
            output = clip(_words(block.get("content")), OUTPUT_LIMIT)
            yield AgentToolReturned(call=call, tool=self._tools.get(call, ""), output=output, is_error=wrong)
            if not wrong:
                yield from _edits(call, record(said, "tool_use_result"), self._workdir)

    def _rate_limited(self, said: JSON) -> Iterator[AgentEvent]:
        info = record(said, "rate_limit_info")
        if info.get("status") == "rejected":
            limit = text(info.get("rateLimitType")).replace("_", " ") or "rate"
            yield AgentRateLimited(message=f"the {limit} limit is reached", resets_at=number(info.get("resetsAt")))

    def _ended(self, said: JSON) -> Iterator[AgentEvent]:
        self._result = said
        self._conversation = text(said.get("session_id")) or self._conversation
        self._usage += self._counted(said)
        yield AgentUsage(usage=msgspec.structs.replace(self._usage, requests=len(self._messages)))
        words = text(said.get("result")) or "\n".join(_complaints(said))
        yield AgentEnded(
            is_error=said.get("is_error") is True or text(said.get("subtype")) != "success",
            text=clip(words),
            reason=text(said.get("terminal_reason")) or text(said.get("subtype")),
        )

    def _counted(self, said: JSON) -> Usage:
        """What was used since the last result. `modelUsage` and the cost beside it go on over a resumed session, and
        `usage` leaves subagents out: neither may be added up."""
        parts = record(said, "model_usage_since_last_result")
        if parts:
            return sum((_used(record(part)) for part in parts.values()), Usage(cost_usd=None))
        plain = record(said, "usage")
        nothing = not any(count(tokens) for tokens in plain.values())
        return Usage(
            input_tokens=count(plain.get("input_tokens")),
            output_tokens=count(plain.get("output_tokens")),
            cache_read_tokens=count(plain.get("cache_read_input_tokens")),
            cache_write_tokens=count(plain.get("cache_creation_input_tokens")),
            cost_usd=0.0 if nothing else None,
        )

    # --- the outcome ------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        """An error code with its reason; two empty strings are a success."""
        result = self._result
        if result is None:
            return self._without_result(exit_code, stderr)
        if result.get("is_error") is True or text(result.get("subtype")) != "success":
            return self._of_result(result)
        if text(result.get("stop_reason")) == "max_tokens":
            return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
        if (denied := self._denials(result)) and not self._worked:
            return AgentFailed.code, f"claude was denied every tool it asked for: {', '.join(denied)}"
        if exit_code:
            return AgentFailed.code, f"claude said that it was done, but {ending('it', exit_code, stderr)}"
        if not self._worked and not text(result.get("result")).strip():
            return NothingDone.code, "claude used no tool and said nothing"
        return "", ""

    def _of_result(self, result: JSON) -> tuple[str, str]:
        words = one_line(text(result.get("result"))) or self._error
        status = count(result.get("api_error_status")) or self._error_status
        subtype = text(result.get("subtype"))
        if text(result.get("terminal_reason")).startswith("aborted"):
            return AgentFailed.code, "claude was interrupted"
        if subtype == "error_max_turns":
            return AgentFailed.code, "claude reached its limit of turns"
        if subtype == "error_max_budget_usd":
            return AgentFailed.code, "claude reached its own limit of money"
        if not words:
            words = one_line("; ".join(_complaints(result))) or subtype
        return code_of(status, text(result.get("result")) or words), words

    def _without_result(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        if self._error:
            return code_of(self._error_status, self._error), f"{self._error}, and claude ended without a result"
        reason = ending("claude", exit_code, stderr) + ("" if exit_code else ", without a result")
        if exit_code == 0 and not self._messages and not stderr.strip():
            return NothingDone.code, reason
        return code_of(0, stderr) if exit_code else AgentFailed.code, reason

    def _denials(self, result: JSON) -> list[str]:
        listed = [text(record(denial).get("tool_name")) for denial in items(result.get("permission_denials"))]
        return sorted({*self._denied, *listed})


def _complaints(result: JSON) -> list[str]:
    """What a result says went wrong; Qwen Code has one error, as an object."""
    return [text(error) for error in items(result.get("errors"))] or [text(record(result, "error").get("message"))]


def _used(part: JSON) -> Usage:
    return Usage(
        input_tokens=count(part.get("inputTokens")),
        output_tokens=count(part.get("outputTokens")),
        cache_read_tokens=count(part.get("cacheReadInputTokens")),
        cache_write_tokens=count(part.get("cacheCreationInputTokens")),
        cost_usd=number(part.get("costUSD")),
    )


def _words(content: object) -> str:
    """A tool's answer as text: it is a string, or blocks of which some are text."""
    if isinstance(content, str):
        return text(content)
    blocks = map(record, items(content))
    return "\n".join(text(block.get("text")) or f"[{text(block.get('type'))}]" for block in blocks)


def _edits(call: str, result: JSON, workdir: str) -> Iterator[AgentEvent]:
    path = relative(text(result.get("filePath")) or text(result.get("notebook_path")), workdir)
    if not path:
        return
    changes = ("structuredPatch", "oldString", "new_source")
    if not any(key in result for key in changes):
        return  # reading a file tells its path too
    diff = patched(path, result.get("structuredPatch"))
    if not diff and result.get("type") == "create":
        diff = created(path, text(result.get("content")))
    yield AgentEdited(path=path, diff=clip(diff), call=call)
