"""Adapters of agent programs: from a turn to a process, from output lines to events. They do no I/O."""

from __future__ import annotations

from hiveyard.agents.claude import Claude
from hiveyard.agents.command import CommandLine
from hiveyard.agents.opencode import Opencode
from hiveyard.core.errors import UnknownAgent
from hiveyard.core.ports import Agent

_AGENTS: dict[str, Agent] = {agent.name: agent for agent in (Claude(), Opencode(), CommandLine())}


def names() -> tuple[str, ...]:
    """The agents there are."""
    return tuple(_AGENTS)


def by_name(name: str) -> Agent:
    """The adapter called `name`. Raises UnknownAgent."""
    try:
        return _AGENTS[name]
    except KeyError:
        raise UnknownAgent(f"no agent is called {name[:80]!r}", hint=f"one of: {', '.join(_AGENTS)}") from None
