"""Claude Code's stream-json on both ends, with its control protocol (`--permission-prompt-tool stdio`).

A prompt is a `user` line. `control_request` lines go in both directions and are answered by a `control_response` with
their `request_id`: the program sends `can_use_tool`, the driver sends `interrupt` and `set_model`. A `user` line in the
middle of a turn is added to that turn. Each turn begins with `system/init` and ends with `result`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from hiveyard.agents.claude.parser import ClaudeParser
from hiveyard.agents.shared.jsonl import JSON, decoded
from hiveyard.agents.shared.permission import PermissionRequests, no_such_option, option
from hiveyard.agents.shared.wording import checked_model, summary
from hiveyard.core.drivers import Answer, Line, Step
from hiveyard.core.errors import AgentFailed
from hiveyard.core.events import AgentEnded, AgentEvent, AgentPrompted, AgentStarted, AgentUsage, clip
from hiveyard.core.usage import Usage
from hiveyard.kit.shape import record, text
from hiveyard.kit.text import one_line

_MAX_ID = 200
_INITIALIZE = "initialize"
_USER_TOOLS = ("AskUserQuestion", "ask_user_question")
"""Tools whose permission is the user's answer to a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The peculiarities of a program that speaks this protocol.

    `initialize`: it sends permission requests only to a client that sent `initialize` first. `cumulative_usage`: its
    usage is a sum over all turns."""

    initialize: bool = False
    cumulative_usage: bool = False


_OPTIONS: Final = (option("allow", "allow", True), option("deny", "deny", False))
CLAUDE: Final = Dialect()
QWEN: Final = Dialect(initialize=True, cumulative_usage=True)


class ClaudeStream:
    """The Driver of Claude Code and of programs that speak a dialect of its protocol.

    With `ask` False, permission requests that still arrive are granted, except questions to the user."""

    def __init__(self, workdir: str, conversation: str | None = None, *, ask: bool, dialect: Dialect = CLAUDE) -> None:
        self._workdir = workdir
        self._ask = ask
        self._dialect = dialect
        self._usage_before = Usage()
        self._interrupted = False
        self._conversation = conversation
        self._announced = False
        self._working = False
        self._turn = ClaudeParser()
        self._permissions = PermissionRequests()

    @property
    def ready(self) -> bool:
        return not self._working

    @property
    def conversation(self) -> str | None:
        return self._conversation

    def start(self) -> Step:
        return Step((), [_request(_INITIALIZE, {"subtype": "initialize"})] if self._dialect.initialize else ())

    def feed(self, line: bytes) -> Step:
        entry = decoded(line)
        if entry is None:
            return Step(self._turn.feed(line))
        kind = text(entry.get("type"))
        if kind == "control_request" and len(text(entry.get("request_id"))) <= _MAX_ID:
            return self._requested(entry)
        if kind == "control_cancel_request":
            self._permissions.remove(text(entry.get("request_id")))
            return Step()
        if kind == "control_response":
            confirmed = text(record(entry, "response", "response").get("subtype"))
            self._interrupted = self._interrupted or (self._working and confirmed == "interrupt")
        if kind in ("control_response", "keep_alive"):
            return Step()
        events = list(self._reported(kind, self._turn.feed(line)))
        if kind == "result":
            self._turn_over()
        return Step(events)

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        if not self._working:
            return Step()
        verdict = self._turn.verdict(exit_code, stderr)
        self._turn_over()
        return Step([AgentEnded(is_error=True, reason=verdict.reason, code=verdict.code)])

    # --- input of the program ---------------------------------------------------------------------------------------

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        return [_user_line(key, text)]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._working = True
        return [AgentPrompted(text=clip(text))]

    def steer(self, key: str, text: str) -> Step:
        return Step((), [_user_line(key, text)])

    def interrupt(self, key: str) -> Step:
        return Step((), [_request(key, {"subtype": "interrupt"})] if self._working else ())

    def choose(self, key: str, model: str) -> Step:
        return Step((), [_request(key, {"subtype": "set_model", "model": checked_model(model)})])

    def answer(self, request: str, answer: Answer) -> Step:
        if answer.option and answer.option != ("allow" if answer.allow else "deny"):
            self._permissions.check(request)
            raise no_such_option(answer.option)
        return Step((), [_decision(request, answer, self._permissions.settle(request))])

    # --- output of the program --------------------------------------------------------------------------------------

    def _requested(self, entry: JSON) -> Step:
        request, asked = text(entry.get("request_id")), record(entry, "request")
        if text(asked.get("subtype")) != "can_use_tool":
            unknown = f"not supported: {one_line(text(asked.get('subtype')), 60)}"
            return Step((), [_response(request, {"subtype": "error", "error": unknown})])
        tool, arguments = text(asked.get("tool_name")), record(asked, "input")
        if not self._ask:
            allowed = tool not in _USER_TOOLS
            answer = Answer(allow=allowed, message="" if allowed else "Nobody is there to answer. Decide yourself.")
            return Step((), [_decision(request, answer, arguments)])
        message = summary(tool, arguments, self._workdir)
        return Step([self._permissions.add(request, tool, arguments, message, options=_OPTIONS)])

    def _reported(self, kind: str, events: Sequence[AgentEvent]) -> Iterator[AgentEvent]:
        for event in events:
            if isinstance(event, AgentStarted):
                # The program sends this before each turn.
                self._working = True
                if self._announced and event.conversation == self._conversation:
                    continue
                self._announced = True
                self._conversation = event.conversation or self._conversation
            if isinstance(event, AgentUsage) and self._dialect.cumulative_usage:
                event = AgentUsage(usage=self._used_since(event.usage))
            if isinstance(event, AgentEnded):
                event = self._judged(event)
            yield event

    def _judged(self, ended: AgentEnded) -> AgentEnded:
        if ended.reason.startswith("aborted") or (self._interrupted and ended.is_error):
            return AgentEnded(is_error=True, reason="interrupted", code=AgentFailed.code)
        verdict = self._turn.verdict(0, "")
        if verdict.ok:
            return ended
        reason = ended.reason if ended.text else verdict.reason
        return msgspec.structs.replace(ended, is_error=True, reason=reason, code=verdict.code)

    def _used_since(self, usage: Usage) -> Usage:
        """Return the usage of this turn from a sum over all turns."""
        before, self._usage_before = self._usage_before, usage
        return msgspec.structs.replace(
            usage,
            input_tokens=max(0, usage.input_tokens - before.input_tokens),
            output_tokens=max(0, usage.output_tokens - before.output_tokens),
            cache_read_tokens=max(0, usage.cache_read_tokens - before.cache_read_tokens),
            cache_write_tokens=max(0, usage.cache_write_tokens - before.cache_write_tokens),
        )

    def _turn_over(self) -> None:
        self._working = self._interrupted = False
        self._turn = ClaudeParser()
        self._permissions.clear()


def _line(key: str, content: Mapping[str, object]) -> Line:
    return Line(key, msgspec.json.encode(content) + b"\n")


def _user_line(key: str, words: str) -> Line:
    return _line(key, {"type": "user", "message": {"role": "user", "content": words}})


def _decision(request: str, answer: Answer, arguments: JSON) -> Line:
    if answer.allow:
        decision = {"behavior": "allow", "updatedInput": arguments if answer.input is None else answer.input}
    else:
        decision = {"behavior": "deny", "message": answer.message or "You may not do that."}
    return _response(request, {"subtype": "success", "response": decision})


def _request(key: str, request: Mapping[str, object]) -> Line:
    return _line(key, {"type": "control_request", "request_id": key, "request": request})


def _response(request: str, response: Mapping[str, object]) -> Line:
    body = {**response, "request_id": request}
    return _line(f"answer-{request}", {"type": "control_response", "response": body})
