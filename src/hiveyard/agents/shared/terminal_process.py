"""The commands for agents in their terminal: source files of `hiveyard.agents`, run by the guest's Python."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

import msgspec

from hiveyard.core.commands import Command, ProcessSpec
from hiveyard.core.ports import Turn

TERMINAL = "agent"
"""The name of the terminal's process and of its tmux session."""
PATIENCE = 1500.0
"""The seconds that `send` waits for a program to start. On an emulated machine with shared CPUs this takes many
minutes."""

_LOAD = """
import sys, types
for name, source in SOURCES:
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), module.__dict__)
"""


def feed(turn: Turn, agent: str) -> str:
    """Return the path of the feed. It is in the agent's state, which outlives the machine."""
    return f"{turn.state}/{agent}/feed.jsonl"


def agent_terminal(turn: Turn, agent: str, settings: Mapping[str, object], env: Mapping[str, str]) -> ProcessSpec:
    """Return the process of the terminal. `settings` are those of the agent's module in the guest."""
    argv = argv_of(turn, agent, "run", settings)
    command = Command(argv=argv, cwd=turn.workdir, env=env, name=agent)
    return ProcessSpec(name=TERMINAL, command=command, terminal=True)


def argv_of(turn: Turn, agent: str, verb: str, settings: Mapping[str, object]) -> tuple[str, ...]:
    """Return the argv that runs a verb of the agent's module in the guest."""
    place = {"state": turn.state, "feed": feed(turn, agent), "patience": PATIENCE}
    return ("python3", "-c", _source(agent), verb, msgspec.json.encode({**place, **settings}).decode())


@cache
def _source(agent: str) -> str:
    agents = resources.files("hiveyard.agents")
    shared = (agents / "shared" / "guest_terminal.py").read_text(encoding="utf-8")
    program = (agents / agent / "terminal.py").read_text(encoding="utf-8")
    packages = [(name, "") for name in ("hiveyard", "hiveyard.agents", "hiveyard.agents.shared")]
    sources = [*packages, ("hiveyard.agents.shared.guest_terminal", shared)]
    return f"SOURCES = {sources!r}\n{_LOAD}\nexec(compile({program!r}, {agent!r}, 'exec'))\n"
