"""Facts in the past tense. Everything that is shown, counted or recovered is read from these.

An `Event` is a body with its place in the journal. Bodies are a tagged union (`type` in JSON). Those of the agent
come from parsing what a guest printed: their texts are bounded here and cleaned of terminal escapes when shown.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import msgspec

from hiveyard.core.usage import Usage

TEXT_LIMIT = 64 << 10
"""Characters kept of one text in an event; the raw line keeps all of it."""


Outcome = Literal["succeeded", "failed", "cancelled", "timeout"]


class Body(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", omit_defaults=True):
    """What all event bodies are."""

    @property
    def type(self) -> str:
        tag = self.__struct_config__.tag
        assert isinstance(tag, str)
        return tag


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """An error as data: its stable code, what happened, and what to type."""

    code: str
    message: str
    hint: str = ""


# --- tasks ----------------------------------------------------------------------------------------------------------


class TaskCreated(Body, frozen=True, kw_only=True, tag="task.created"):
    """A job was accepted. `request` is the request as it came, complete: the task can be done again from it."""

    slug: str
    request: dict[str, Any]


class TaskAssigned(Body, frozen=True, kw_only=True, tag="task.assigned"):
    """It was decided where the task runs; `why` says how `auto` decided."""

    provider: str
    tier: str
    machine: str
    why: str = ""


class TaskStarted(Body, frozen=True, kw_only=True, tag="task.started"):
    """The agent is at work."""


class TaskCompleted(Body, frozen=True, kw_only=True, tag="task.completed"):
    """The agent succeeded and its result was collected."""


class TaskFailed(Body, frozen=True, kw_only=True, tag="task.failed"):
    """The task ended without success; what there was of a result was collected."""

    failure: Failure


class TaskCancelAsked(Body, frozen=True, kw_only=True, tag="task.cancel_asked"):
    """A person asked for the end of the task; the end itself follows."""


class TaskCancelled(Body, frozen=True, kw_only=True, tag="task.cancelled"):
    """A person ended the task; what there was of a result was collected."""

    reason: str = ""


# --- sessions -------------------------------------------------------------------------------------------------------


class SessionCreated(Body, frozen=True, kw_only=True, tag="session.created"):
    """A workspace with a directory of its own exists."""

    slug: str
    repo: str
    agent: str


class SessionPrepared(Body, frozen=True, kw_only=True, tag="session.prepared"):
    """The repository was copied: work starts at `base` on branch `branch`."""

    base: str
    branch: str
    base_ref: str = ""


class SessionPreparing(Body, frozen=True, kw_only=True, tag="session.preparing"):
    """The repository is being copied and a machine is being made."""


class SessionRunning(Body, frozen=True, kw_only=True, tag="session.running"):
    """A machine is up and the agent may work."""


class SessionStopped(Body, frozen=True, kw_only=True, tag="session.stopped"):
    """No machine any more; the files are kept."""

    reason: str = ""


class SessionFinished(Body, frozen=True, kw_only=True, tag="session.finished"):
    """The work is done and collected."""


class SessionFailed(Body, frozen=True, kw_only=True, tag="session.failed"):
    """The session cannot go on."""

    failure: Failure


# --- machines -------------------------------------------------------------------------------------------------------


class MachineBooting(Body, frozen=True, kw_only=True, tag="machine.booting"):
    """A machine was asked for."""

    machine: str
    provider: str


class MachineReady(Body, frozen=True, kw_only=True, tag="machine.ready"):
    """The machine runs commands. `seconds` is how long that took."""

    machine: str
    seconds: float = 0.0


class MachineStopping(Body, frozen=True, kw_only=True, tag="machine.stopping"):
    """The machine is being removed."""

    machine: str


class MachineStopped(Body, frozen=True, kw_only=True, tag="machine.stopped"):
    """The machine is gone, as wanted."""

    machine: str


class MachineFailed(Body, frozen=True, kw_only=True, tag="machine.failed"):
    """The machine did not come up or died; `failure` says what is known."""

    machine: str
    failure: Failure


# --- turns ----------------------------------------------------------------------------------------------------------


class TurnCreated(Body, frozen=True, kw_only=True, tag="turn.created"):
    """A prompt waits for its turn."""

    agent: str
    model: str = ""


class TurnStarted(Body, frozen=True, kw_only=True, tag="turn.started"):
    """The agent's process was started in the guest."""

    agent: str
    program: str = ""
    model: str = ""
    pid: int | None = None


class TurnEnded(Body, frozen=True, kw_only=True, tag="turn.ended"):
    """The turn's outcome, decided by the agent's events, its exit code and the work tree together."""

    outcome: Outcome
    exit_code: int | None = None
    failure: Failure | None = None
    conversation: str | None = None


class ResultCollected(Body, frozen=True, kw_only=True, tag="result.collected"):
    """The branch, patch and counts were taken out of the guest and stand on the host."""

    branch: str
    base: str
    head: str
    commits: int
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    leftover: bool = False  # the last commit was made by Hiveyard from what the agent had left uncommitted


class PhaseEnded(Body, frozen=True, kw_only=True, tag="phase.ended"):
    """A step of the work took so many seconds (`clone`, `image`, `boot`, `push`, `agent`, `collect`, ...)."""

    phase: str
    seconds: float


class Progress(Body, frozen=True, kw_only=True, tag="progress"):
    """A long step says where it is."""

    message: str


class Notice(Body, frozen=True, kw_only=True, tag="notice"):
    """Something a person should know and need not act on."""

    message: str
    code: str = ""


# --- what the agent says --------------------------------------------------------------------------------------------


class AgentStarted(Body, frozen=True, kw_only=True, tag="agent.started"):
    """The program introduced itself."""

    conversation: str = ""
    model: str = ""
    version: str = ""


class AgentText(Body, frozen=True, kw_only=True, tag="agent.text"):
    """It said something."""

    text: str


class AgentThinking(Body, frozen=True, kw_only=True, tag="agent.thinking"):
    """It thought aloud."""

    text: str


class AgentToolCalled(Body, frozen=True, kw_only=True, tag="agent.tool_called"):
    """It used a tool. `summary` is one readable line (`Bash: pytest -q`)."""

    call: str
    tool: str
    summary: str


class AgentToolReturned(Body, frozen=True, kw_only=True, tag="agent.tool_returned"):
    """The tool answered. `output` is the start of what it gave."""

    call: str
    tool: str = ""
    output: str = ""
    is_error: bool = False


class AgentEdited(Body, frozen=True, kw_only=True, tag="agent.edited"):
    """It changed a file; `diff` is unified, empty when the program does not tell."""

    path: str
    diff: str = ""
    call: str = ""


class AgentUsage(Body, frozen=True, kw_only=True, tag="agent.usage"):
    """What the program itself counts for this turn so far. The door's count is the one that is billed."""

    usage: Usage


class AgentError(Body, frozen=True, kw_only=True, tag="agent.error"):
    """The program reported an error; it may go on."""

    message: str
    code: str = ""


class AgentRetrying(Body, frozen=True, kw_only=True, tag="agent.retrying"):
    """A call to the model failed and is tried again."""

    attempt: int
    message: str = ""


class AgentRateLimited(Body, frozen=True, kw_only=True, tag="agent.rate_limited"):
    """The account is at its limit; `resets_at` in seconds since the epoch when it is known."""

    message: str
    resets_at: float | None = None


class AgentPermissionDenied(Body, frozen=True, kw_only=True, tag="agent.permission_denied"):
    """The program refused itself a tool for want of permission."""

    tool: str
    message: str = ""


class AgentEnded(Body, frozen=True, kw_only=True, tag="agent.ended"):
    """The program says that it is done; `text` is its last word."""

    is_error: bool
    text: str = ""
    reason: str = ""


class AgentOutput(Body, frozen=True, kw_only=True, tag="agent.output"):
    """A line that has no other meaning here; kept as it came."""

    text: str


# --- the door -------------------------------------------------------------------------------------------------------


class ModelCalled(Body, frozen=True, kw_only=True, tag="model.called"):
    """One request to a model was answered. `status` is the HTTP status; `complete` False: the stream was cut."""

    protocol: str
    model: str
    status: int
    seconds: float
    usage: Usage
    complete: bool = True
    source: Literal["upstream", "tape"] = "upstream"


class ModelFailed(Body, frozen=True, kw_only=True, tag="model.failed"):
    """A request to a model got no useful answer."""

    protocol: str
    failure: Failure
    status: int = 0


class DoorRefused(Body, frozen=True, kw_only=True, tag="door.refused"):
    """Something in the guest asked the door for what it may not have."""

    what: str
    reason: str


class BudgetExhausted(Body, frozen=True, kw_only=True, tag="budget.exhausted"):
    """The money for this task is spent; no further request is let through."""

    budget_usd: float
    spent_usd: float


AgentEvent = (
    AgentStarted
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
TaskEvent = TaskCreated | TaskAssigned | TaskStarted | TaskCompleted | TaskFailed | TaskCancelled
SessionEvent = SessionCreated | SessionPreparing | SessionRunning | SessionStopped | SessionFinished | SessionFailed
MachineEvent = MachineBooting | MachineReady | MachineStopping | MachineStopped | MachineFailed
DoorEvent = ModelCalled | ModelFailed | DoorRefused | BudgetExhausted
AnyBody = (
    TaskEvent
    | SessionEvent
    | SessionPrepared
    | MachineEvent
    | TaskCancelAsked
    | TurnCreated
    | TurnStarted
    | TurnEnded
    | ResultCollected
    | PhaseEnded
    | Progress
    | Notice
    | AgentEvent
    | DoorEvent
)


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """A body with its place: `seq` only grows, over all sessions; `at` is seconds since the epoch.

    `raw` is the line of the agent's output that it came from, on the first event of each line.
    """

    SCHEMA: ClassVar[int] = 1

    seq: int
    at: float
    session: str
    turn: int | None = None
    body: AnyBody
    raw: bytes | None = None


def clip(text: str, limit: int = TEXT_LIMIT) -> str:
    """`text`, or its first `limit` characters with a note of how many were left out."""
    if len(text) <= limit:
        return text
    return text[:limit] + f"\n[{len(text) - limit} more characters]"
