"""Events of an agent, as its adapter parsed them from the program's output.

The texts come from a guest. They are limited in length here and cleaned when they are shown."""

from __future__ import annotations

import msgspec

from hiveyard.core.events.body import TEXT_LIMIT, Body, clip
from hiveyard.core.usage import Usage

_MAX_TEXT = TEXT_LIMIT + 100
"""Includes the note at the end of a text that was clipped before."""


class _AgentBody(Body, frozen=True, kw_only=True):
    """A body whose long texts are clipped."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str) and len(value) > _MAX_TEXT:
                msgspec.structs.force_setattr(self, name, clip(value))


class AgentStarted(_AgentBody, frozen=True, kw_only=True, tag="agent.started"):
    """The program reported its conversation, model and version."""

    conversation: str = ""
    model: str = ""
    version: str = ""


class AgentPrompted(_AgentBody, frozen=True, kw_only=True, tag="agent.prompted"):
    """The agent got a prompt, from Hiveyard or from a user at its terminal. A turn begins."""

    text: str


class AskOption(msgspec.Struct, frozen=True, kw_only=True):
    """One of the answers that a program offers: its own `id` of it, a name for people, and whether it allows the
    action."""

    id: str
    name: str
    allow: bool


class AgentAsked(_AgentBody, frozen=True, kw_only=True, tag="agent.asked"):
    """The agent waits for an answer: from a user at its terminal, or to `request` if it is set.

    It then asks for permission to call `tool` with `input`, a JSON object. `input` is empty if it is too long to
    report. `options` are the answers that the program offers. `ask` is Hiveyard's id of the question, if it keeps
    it."""

    message: str
    request: str = ""
    tool: str = ""
    input: str = ""
    options: tuple[AskOption, ...] = ()
    ask: str = ""


class AgentText(_AgentBody, frozen=True, kw_only=True, tag="agent.text"):
    """The agent wrote a text."""

    text: str


class AgentThinking(_AgentBody, frozen=True, kw_only=True, tag="agent.thinking"):
    """The agent wrote its reasoning."""

    text: str


class AgentToolCalled(_AgentBody, frozen=True, kw_only=True, tag="agent.tool_called"):
    """The agent called a tool. `summary` is one readable line (`Bash: pytest -q`)."""

    call: str
    tool: str
    summary: str


class AgentToolReturned(_AgentBody, frozen=True, kw_only=True, tag="agent.tool_returned"):
    """A tool answered. `output` is the beginning of its answer."""

    call: str
    tool: str = ""
    output: str = ""
    is_error: bool = False


class AgentEdited(_AgentBody, frozen=True, kw_only=True, tag="agent.edited"):
    """The agent changed a file. `diff` is a unified diff, empty if the program does not report one."""

    path: str
    diff: str = ""
    call: str = ""


class AgentUsage(_AgentBody, frozen=True, kw_only=True, tag="agent.usage"):
    """The turn's usage so far, as the program counts it. The door's count is the one that is billed."""

    usage: Usage


class AgentError(_AgentBody, frozen=True, kw_only=True, tag="agent.error"):
    """The program reported an error. It may continue."""

    message: str
    code: str = ""


class AgentRetrying(_AgentBody, frozen=True, kw_only=True, tag="agent.retrying"):
    """A call to the model failed and is retried."""

    attempt: int
    message: str = ""


class AgentRateLimited(_AgentBody, frozen=True, kw_only=True, tag="agent.rate_limited"):
    """The account is at its limit, until `resets_at` (seconds since the epoch) if that is known."""

    message: str
    resets_at: float | None = None


class AgentPermissionDenied(_AgentBody, frozen=True, kw_only=True, tag="agent.permission_denied"):
    """The program denied itself a tool, because it lacks the permission."""

    tool: str
    message: str = ""


class AgentEnded(_AgentBody, frozen=True, kw_only=True, tag="agent.ended"):
    """The program reported that it is done. `text` is its last text. `code` is an error code, if a turn of a live
    conversation failed."""

    is_error: bool
    text: str = ""
    reason: str = ""
    code: str = ""


class AgentOutput(_AgentBody, frozen=True, kw_only=True, tag="agent.output"):
    """A line without another meaning here, unchanged."""

    text: str


AgentEvent = (
    AgentStarted
    | AgentPrompted
    | AgentAsked
    | AgentText
    | AgentThinking
    | AgentToolCalled
    | AgentToolReturned
    | AgentEdited
    | AgentUsage
    | AgentError
    | AgentRetrying
    | AgentRateLimited
    | AgentPermissionDenied
    | AgentEnded
    | AgentOutput
)
