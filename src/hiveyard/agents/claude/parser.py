"""The lines of `claude -p --output-format stream-json`, and the turn's outcome.

The program has about forty types of lines, and new versions add more. Types without information for a reader are
ignored; unknown ones are kept as output. `result` lines decide the outcome, but not by their subtype alone: `success`
comes with `is_error` if the API failed, and also if every tool was denied."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, by_type, events, ignore
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
# Lines about the program itself. Events leave them out; the raw stream keeps them.
_IGNORED_SYSTEM = ("status", "thinking_tokens", "hook_started", "hook_progress", "hook_response", "compact_boundary",
          "session_state_changed", "task_started", "task_progress", "task_notification", "task_updated")  # fmt: skip


class ClaudeParser:
    """The parser of one turn of Claude Code."""

    def __init__(self) -> None:
        self._workdir = ""
        self._conversation: str | None = None
        self._tool_names: dict[str, str] = {}
        self._message_ids: set[str] = set()
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
            "result": self._result_line,
            "rate_limit_event": self._rate_limited,
            "stream_event": ignore,
        }

    # --- lines ------------------------------------------------------------------------------------------------------

    def _system(self, entry: JSON) -> Iterator[AgentEvent] | None:
        kind = text(entry.get("subtype"))
        if kind == "init":
            return self._init(entry)
        if kind == "api_retry":
            return self._retrying(entry)
        if kind == "permission_denied":
            return self._permission_denied(entry)
        return iter(()) if kind in _IGNORED_SYSTEM else None

    def _init(self, entry: JSON) -> Iterator[AgentEvent]:
        known = self._conversation is not None
        self._workdir = text(entry.get("cwd"))
        self._conversation = text(entry.get("session_id")) or self._conversation
        if not known:  # the program repeats this before each of its own rounds
            yield AgentStarted(
                conversation=self._conversation or "",
                model=text(entry.get("model")),
                version=text(entry.get("claude_code_version")) or text(entry.get("qwen_code_version")),
            )

    def _retrying(self, entry: JSON) -> Iterator[AgentEvent]:
        status = count(entry.get("error_status"))
        self._error_status = status or self._error_status
        error = text(entry.get("error"))
        message = one_line(f"{status or ''} {'no answer' if error in ('', 'unknown') else error}".strip())
        self._error = f"the model's API failed: {message}"
        tries = f" (try {count(entry.get('attempt'))} of {count(entry.get('max_retries'))})"
        yield AgentRetrying(attempt=count(entry.get("attempt")), message=message + tries)

    def _permission_denied(self, entry: JSON) -> Iterator[AgentEvent]:
        tool = text(entry.get("tool_name"))
        self._denied.append(tool)
        yield AgentPermissionDenied(tool=tool, message=one_line(text(entry.get("message"))))

    def _assistant(self, entry: JSON) -> Iterator[AgentEvent]:
        message = record(entry, "message")
        synthetic = message.get("model") == _SYNTHETIC
        if not synthetic:
            self._message_ids.add(text(message.get("id")))
        for block in map(record, items(message.get("content"))):
            kind = block.get("type")
            if kind == "text" and (words := text(block.get("text"))).strip():
                yield self._synthetic(entry, words) if synthetic or entry.get("error") else AgentText(text=clip(words))
            elif kind == "thinking" and (words := text(block.get("thinking"))).strip():
                yield AgentThinking(text=clip(words))
            elif kind in ("tool_use", "server_tool_use"):
                yield self._called(block)

    def _synthetic(self, entry: JSON, words: str) -> AgentEvent:
        """Return an error for a text of the program itself in place of the model."""
        self._error = one_line(words)
        return AgentError(message=clip(words), code=text(entry.get("error")))

    def _called(self, block: JSON) -> AgentEvent:
        call, tool = text(block.get("id")), text(block.get("name"))
        self._tool_names[call] = tool
        return AgentToolCalled(call=call, tool=tool, summary=summary(tool, record(block, "input"), self._workdir))

    def _user(self, entry: JSON) -> Iterator[AgentEvent]:
        for block in map(record, items(record(entry, "message").get("content"))):
            if block.get("type") != "tool_result":
                continue
            call = text(block.get("tool_use_id"))
            wrong = block.get("is_error") is True
            self._worked = self._worked or not wrong
            output = clip(_text_of(block.get("content")), OUTPUT_LIMIT)
            yield AgentToolReturned(call=call, tool=self._tool_names.get(call, ""), output=output, is_error=wrong)
            if not wrong:
                yield from _edits(call, record(entry, "tool_use_result"), self._workdir)

    def _rate_limited(self, entry: JSON) -> Iterator[AgentEvent]:
        info = record(entry, "rate_limit_info")
        if info.get("status") == "rejected":
            limit = text(info.get("rateLimitType")).replace("_", " ") or "rate"
            yield AgentRateLimited(message=f"the {limit} limit is reached", resets_at=number(info.get("resetsAt")))

    def _result_line(self, entry: JSON) -> Iterator[AgentEvent]:
        self._result = entry
        self._conversation = text(entry.get("session_id")) or self._conversation
        self._usage += self._usage_of(entry)
        yield AgentUsage(usage=msgspec.structs.replace(self._usage, requests=len(self._message_ids)))
        words = text(entry.get("result")) or "\n".join(_error_messages(entry))
        yield AgentEnded(
            is_error=entry.get("is_error") is True or text(entry.get("subtype")) != "success",
            text=clip(words),
            reason=text(entry.get("terminal_reason")) or text(entry.get("subtype")),
        )

    def _usage_of(self, entry: JSON) -> Usage:
        """Return the usage since the last result.

        `modelUsage` and the cost next to it continue over a resumed session, and `usage` excludes subagents, so neither
        may be added up."""
        parts = record(entry, "model_usage_since_last_result")
        if parts:
            return sum((_usage_of_model(record(part)) for part in parts.values()), Usage(cost_usd=None))
        plain = record(entry, "usage")
        empty = not any(count(tokens) for tokens in plain.values())
        return Usage(
            input_tokens=count(plain.get("input_tokens")),
            output_tokens=count(plain.get("output_tokens")),
            cache_read_tokens=count(plain.get("cache_read_input_tokens")),
            cache_write_tokens=count(plain.get("cache_creation_input_tokens")),
            cost_usd=0.0 if empty else None,
        )

    # --- the outcome ------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        """Return an error code and its reason; two empty strings mean success."""
        result = self._result
        if result is None:
            return self._without_result(exit_code, stderr)
        if result.get("is_error") is True or text(result.get("subtype")) != "success":
            return self._of_result(result)
        if text(result.get("stop_reason")) == "max_tokens":
            return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
        if (denied := self._denials(result)) and not self._worked:
            return AgentFailed.code, f"claude was denied every tool that it requested: {', '.join(denied)}"
        if exit_code:
            return AgentFailed.code, f"claude reported success, but {ending('it', exit_code, stderr)}"
        if not self._worked and not text(result.get("result")).strip():
            return NothingDone.code, "claude used no tool and wrote no text"
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
            return AgentFailed.code, "claude reached its own budget"
        if not words:
            words = one_line("; ".join(_error_messages(result))) or subtype
        return code_of(status, text(result.get("result")) or words), words

    def _without_result(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        if self._error:
            return code_of(self._error_status, self._error), f"{self._error}, and claude ended without a result"
        reason = ending("claude", exit_code, stderr) + ("" if exit_code else ", without a result")
        if exit_code == 0 and not self._message_ids and not stderr.strip():
            return NothingDone.code, reason
        return code_of(0, stderr) if exit_code else AgentFailed.code, reason

    def _denials(self, result: JSON) -> list[str]:
        listed = [text(record(denial).get("tool_name")) for denial in items(result.get("permission_denials"))]
        return sorted({*self._denied, *listed})


def _error_messages(result: JSON) -> list[str]:
    """Return the error messages of a result. Qwen Code has one error, as an object."""
    return [text(error) for error in items(result.get("errors"))] or [text(record(result, "error").get("message"))]


def _usage_of_model(part: JSON) -> Usage:
    return Usage(
        input_tokens=count(part.get("inputTokens")),
        output_tokens=count(part.get("outputTokens")),
        cache_read_tokens=count(part.get("cacheReadInputTokens")),
        cache_write_tokens=count(part.get("cacheCreationInputTokens")),
        cost_usd=number(part.get("costUSD")),
    )


def _text_of(content: object) -> str:
    """Return a tool's answer as text. It is a string, or a list of blocks, some of them text."""
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
        return  # results of reading a file have a path too
    diff = patched(path, result.get("structuredPatch"))
    if not diff and result.get("type") == "create":
        diff = created(path, text(result.get("content")))
    yield AgentEdited(path=path, diff=clip(diff), call=call)
