"""Claude Code's stream-json on both ends, with its control protocol (`--permission-prompt-tool stdio`).

A prompt is a `user` line. `control_request` lines go both ways and are answered by a `control_response` with their
`request_id`: the program asks `can_use_tool`, and is asked `interrupt` and `set_model`. A `user` line in the middle of
a turn is taken into that turn. Each turn begins with `system/init` and ends with `result`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from hiveyard.agents.claude.parser import ClaudeParser
from hiveyard.agents.shared.jsonl import JSON, decoded
from hiveyard.agents.shared.permission import PermissionRequest
from hiveyard.agents.shared.wording import checked_model, summary
from hiveyard.core.drivers import Answer, Line, Step
from hiveyard.core.errors import AgentFailed
from hiveyard.core.events import AgentEnded, AgentEvent, AgentPrompted, AgentStarted, AgentUsage, clip
from hiveyard.core.usage import Usage
from hiveyard.kit.shape import record, text
from hiveyard.kit.text import one_line

_LONGEST_ID = 200
_GREETING = "initialize"
_FOR_A_PERSON = ("AskUserQuestion", "ask_user_question")
"""Tools whose leave is a person's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a program differs. `greet`: it asks leave only of one who said first that he is there. `adds_up`: what it
    used is a sum over all turns."""

    greet: bool = False
    adds_up: bool = False


CLAUDE: Final = Dialect()
QWEN: Final = Dialect(greet=True, adds_up=True)


class ClaudeStream:
    """The Driver of Claude Code, and of programs that speak as it does, in a dialect of theirs. `ask` False: leave that
    it asks for all the same it gets; a person's words it does not."""

    def __init__(self, workdir: str, conversation: str | None = None, *, ask: bool, dialect: Dialect = CLAUDE) -> None:
        self._workdir = workdir
        self._ask = ask
        self._dialect = dialect
        self._told = Usage()
        self._interrupted = False
        self._conversation = conversation
        self._introduced = False
        self._working = False
        self._turn = ClaudeParser()
        self._leave = PermissionRequest()

    @property
    def ready(self) -> bool:
        return not self._working

    @property
    def conversation(self) -> str | None:
        return self._conversation

    def start(self) -> Step:
        return Step((), [_request(_GREETING, {"subtype": "initialize"})] if self._dialect.greet else ())

    def feed(self, line: bytes) -> Step:
        said = decoded(line)
        if said is None:
            return Step(self._turn.feed(line))
        kind = text(said.get("type"))
        if kind == "control_request" and len(text(said.get("request_id"))) <= _LONGEST_ID:
            return self._asked(said)
        if kind == "control_cancel_request":
            self._leave.withdrawn(text(said.get("request_id")))
            return Step()
        if kind == "control_response":
            confirmed = text(record(said, "response", "response").get("subtype"))
            self._interrupted = self._interrupted or (self._working and confirmed == "interrupt")
        if kind in ("control_response", "keep_alive"):
            return Step()
        events = list(self._heard(kind, self._turn.feed(line)))
        if kind == "result":
            self._over()
        return Step(events)

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        if not self._working:
            return Step()
        verdict = self._turn.verdict(exit_code, stderr)
        self._over()
        return Step([AgentEnded(is_error=True, reason=verdict.reason, code=verdict.code)])

    # --- what it is told --------------------------------------------------------------------------------------------

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        return [_said(key, text)]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._working = True
        return [AgentPrompted(text=clip(text))]

    def steer(self, key: str, text: str) -> Step:
        return Step((), [_said(key, text)])

    def interrupt(self, key: str) -> Step:
        return Step((), [_request(key, {"subtype": "interrupt"})] if self._working else ())

    def choose(self, key: str, model: str) -> Step:
        return Step((), [_request(key, {"subtype": "set_model", "model": checked_model(model)})])

    def answer(self, request: str, answer: Answer) -> Step:
        return Step((), [_decided(request, answer, self._leave.settle(request))])

    # --- what it says -----------------------------------------------------------------------------------------------

    def _asked(self, said: JSON) -> Step:
        request, asked = text(said.get("request_id")), record(said, "request")
        if text(asked.get("subtype")) != "can_use_tool":
            unknown = f"nothing here answers {one_line(text(asked.get('subtype')), 60)}"
            return Step((), [_response(request, {"subtype": "error", "error": unknown})])
        tool, arguments = text(asked.get("tool_name")), record(asked, "input")
        if not self._ask:
            allowed = tool not in _FOR_A_PERSON
            answer = Answer(allow=allowed, message="" if allowed else "Nobody is there to answer. Decide yourself.")
            return Step((), [_decided(request, answer, arguments)])
        message = summary(tool, arguments, self._workdir)
        return Step([self._leave.wanted(request, tool, arguments, message)])

    def _heard(self, kind: str, events: Sequence[AgentEvent]) -> Iterator[AgentEvent]:
        for event in events:
            if isinstance(event, AgentStarted):
                # It introduces itself before each turn.
                self._working = True
                if self._introduced and event.conversation == self._conversation:
                    continue
                self._introduced = True
                self._conversation = event.conversation or self._conversation
            if isinstance(event, AgentUsage) and self._dialect.adds_up:
                event = AgentUsage(usage=self._since(event.usage))
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

    def _since(self, told: Usage) -> Usage:
        """What this turn used, of a sum that goes on over all turns."""
        before, self._told = self._told, told
        return msgspec.structs.replace(
            told,
            input_tokens=max(0, told.input_tokens - before.input_tokens),
            output_tokens=max(0, told.output_tokens - before.output_tokens),
            cache_read_tokens=max(0, told.cache_read_tokens - before.cache_read_tokens),
            cache_write_tokens=max(0, told.cache_write_tokens - before.cache_write_tokens),
        )

    def _over(self) -> None:
        self._working = self._interrupted = False
        self._turn = ClaudeParser()
        self._leave.end()


def _line(key: str, content: Mapping[str, object]) -> Line:
    return Line(key, msgspec.json.encode(content) + b"\n")


def _said(key: str, words: str) -> Line:
    return _line(key, {"type": "user", "message": {"role": "user", "content": words}})


def _decided(request: str, answer: Answer, arguments: JSON) -> Line:
    if answer.allow:
        decision = {"behavior": "allow", "updatedInput": arguments if answer.input is None else answer.input}
    else:
        decision = {"behavior": "deny", "message": answer.message or "You may not do that."}
    return _response(request, {"subtype": "success", "response": decision})


def _request(key: str, request: Mapping[str, object]) -> Line:
    return _line(key, {"type": "control_request", "request_id": key, "request": request})


def _response(request: str, response: Mapping[str, object]) -> Line:
    told = {**response, "request_id": request}
    return _line(f"answer-{request}", {"type": "control_response", "response": told})
