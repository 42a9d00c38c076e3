"""What an agent says and does, as its adapter understood it.

It comes out of a guest: bounded here, cleaned when shown."""

from __future__ import annotations

import msgspec

from hiveyard.core.events.body import TEXT_LIMIT, Body, clip
from hiveyard.core.usage import Usage

_LONGEST = TEXT_LIMIT + 100
"""With the note of a text that was clipped before."""


class _Words(Body, frozen=True, kw_only=True):
    """Texts that are too long are clipped, whatever they stand for."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, str) and len(value) > _LONGEST:
                msgspec.structs.force_setattr(self, name, clip(value))


class AgentStarted(_Words, frozen=True, kw_only=True, tag="agent.started"):
    """The program introduced itself."""

    conversation: str = ""
    model: str = ""
    version: str = ""


class AgentPrompted(_Words, frozen=True, kw_only=True, tag="agent.prompted"):
    """Somebody told it what to do: Hiveyard, or a person at its terminal. A turn begins."""

    text: str


class AgentAsked(_Words, frozen=True, kw_only=True, tag="agent.asked"):
    """It waits for an answer: of a person at its terminal, or, with a `request`, to that request. It wants leave to
    call `tool` with `input`, a JSON object, which is empty when it is too long to be told."""

    message: str
    request: str = ""
    tool: str = ""
    input: str = ""


class AgentText(_Words, frozen=True, kw_only=True, tag="agent.text"):
    """It said something."""

    text: str


class AgentThinking(_Words, frozen=True, kw_only=True, tag="agent.thinking"):
    """It thought aloud."""

    text: str


class AgentToolCalled(_Words, frozen=True, kw_only=True, tag="agent.tool_called"):
    """It used a tool. `summary` is one readable line (`Bash: pytest -q`)."""

    call: str
    tool: str
    summary: str


class AgentToolReturned(_Words, frozen=True, kw_only=True, tag="agent.tool_returned"):
    """The tool answered. `output` is the start of what it gave."""

    call: str
    tool: str = ""
    output: str = ""
    is_error: bool = False


class AgentEdited(_Words, frozen=True, kw_only=True, tag="agent.edited"):
    """It changed a file; `diff` is unified, empty when the program does not tell."""

    path: str
    diff: str = ""
    call: str = ""


class AgentUsage(_Words, frozen=True, kw_only=True, tag="agent.usage"):
    """What the program itself counts for this turn so far. The door's count is the one that is billed."""

    usage: Usage


class AgentError(_Words, frozen=True, kw_only=True, tag="agent.error"):
    """The program reported an error; it may go on."""

    message: str
    code: str = ""


class AgentRetrying(_Words, frozen=True, kw_only=True, tag="agent.retrying"):
    """A call to the model failed and is tried again."""

    attempt: int
    message: str = ""


class AgentRateLimited(_Words, frozen=True, kw_only=True, tag="agent.rate_limited"):
    """The account is at its limit; `resets_at` in seconds since the epoch when it is known."""

    message: str
    resets_at: float | None = None


class AgentPermissionDenied(_Words, frozen=True, kw_only=True, tag="agent.permission_denied"):
    """The program refused itself a tool for want of permission."""

    tool: str
    message: str = ""


class AgentEnded(_Words, frozen=True, kw_only=True, tag="agent.ended"):
    """The program says that it is done; `text` is its last word. `code` is one of the error list, where the end of a
    live turn is judged at once."""

    is_error: bool
    text: str = ""
    reason: str = ""
    code: str = ""


class AgentOutput(_Words, frozen=True, kw_only=True, tag="agent.output"):
    """A line that has no other meaning here; kept as it came."""

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
