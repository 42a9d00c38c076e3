"""Make a Turn, the adapter's data, from a request: the same for a task, a terminal and a live agent."""

from __future__ import annotations

from collections.abc import Callable

from hiveyard.core.ports import Turn
from hiveyard.engine.run_spec import RunSpec
from hiveyard.engine.workspace.directory import GUEST_PROMPT, GUEST_REPO, GUEST_STATE, Workspace
from hiveyard.engine.workspace.values import with_values


def turn_spec(
    request: RunSpec,
    workspace: Workspace,
    door_url: str,
    *,
    name: str,
    conversation: str | None = None,
    ask: bool = False,
) -> Turn:
    """Return the turn of a session's request as the journal has it. Raises BadInput, SessionDamaged for values that are
    not there."""
    key = workspace.placeholder().reveal()
    return _turn(with_values(workspace, request), door_url, key, name=name, conversation=conversation, ask=ask)


def check_turn(request: RunSpec, build: Callable[[Turn], object], *, ask: bool = False) -> None:
    """Validate what the agent's program is given, by building its process. Raises BadInput for a system text, a tool
    server or a variable that it cannot take."""
    if request.system or request.mcp or request.env:
        build(_turn(request, "http://127.0.0.1", "", name="check", conversation=None, ask=ask))


def _turn(request: RunSpec, door_url: str, key: str, *, name: str, conversation: str | None, ask: bool) -> Turn:
    return Turn(
        name=name,
        prompt=GUEST_PROMPT,
        workdir=GUEST_REPO,
        state=GUEST_STATE,
        door_url=door_url,
        placeholder=key,
        model=request.model,
        conversation=conversation,
        repository_config=request.repository_config,
        command=request.command,
        ask=ask,
        system=request.system,
        mcp={name: server.resolved(door_url, key) for name, server in (request.mcp or {}).items()},
        env=request.env or {},
    )
