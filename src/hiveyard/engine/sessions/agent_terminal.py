"""The agents that have a terminal program of their own, and the turn that such a program is started with."""

from __future__ import annotations

from typing import cast

from hiveyard.agents import by_name, names
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import HasTerminal, Turn
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.turns.terminal_runner import TERMINAL, TerminalAgent
from hiveyard.engine.workspace.directory import GUEST_PROMPT, GUEST_REPO, GUEST_STATE, Workspace


def terminal_agent(name: str) -> TerminalAgent:
    """Return the agent called `name`. Raises UnknownAgent, and BadInput for an agent without a terminal program."""
    agent = by_name(name)
    if not isinstance(agent, HasTerminal):
        able = ", ".join(other for other in names() if isinstance(by_name(other), HasTerminal))
        raise BadInput(f"{name} has no terminal program to attach to", hint=f"--agent, one of: {able}; or hv run")
    return cast(TerminalAgent, agent)


def terminal_turn(request: SpawnRequest, workspace: Workspace, door_url: str, conversation: str | None) -> Turn:
    """Return the turn that describes the session to the agent's adapter."""
    return Turn(
        name=TERMINAL,
        prompt=GUEST_PROMPT,
        workdir=GUEST_REPO,
        state=GUEST_STATE,
        door_url=door_url,
        placeholder=workspace.placeholder().reveal(),
        model=request.model,
        conversation=conversation,
        repository_config=request.repository_config,
        command=request.command,
    )
