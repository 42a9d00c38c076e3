"""Adapters of agent programs: from a turn to a process, from output lines to events. They do no I/O."""

from __future__ import annotations

from typing import cast

from hiveyard import plugins
from hiveyard.agents.acp_program import AcpProgram
from hiveyard.agents.claude.adapter import Claude
from hiveyard.agents.codex.adapter import Codex
from hiveyard.agents.command import CommandLine
from hiveyard.agents.goose.adapter import Goose
from hiveyard.agents.opencode.adapter import Opencode
from hiveyard.core.errors import UnknownAgent
from hiveyard.core.ports import Agent

_AGENTS: dict[str, Agent] = {
    agent.name: agent for agent in (Claude(), Opencode(), Codex(), Goose(), CommandLine(), AcpProgram())
}


def names() -> tuple[str, ...]:
    """Return the names of the agents that come with Hiveyard."""
    return tuple(_AGENTS)


def by_name(name: str) -> Agent:
    """Return the adapter called `name`, Hiveyard's or a plugin's. Raises UnknownAgent, BadPlugin."""
    if name in _AGENTS:
        return _AGENTS[name]
    agent = plugins.make("hiveyard.agents", name, _AGENTS)
    if agent is None:
        known = ", ".join([*_AGENTS, *plugins.names("hiveyard.agents", _AGENTS)])
        raise UnknownAgent(f"no agent is called {name[:80]!r}", hint=f"one of: {known}")
    return cast(Agent, agent)
