"""The real terminal programs in a real tmux, on this host, cut off from every network but the scripted model.

async with sitting(yard, "claude", script) as place:
    await place.sit()
    await place.say("hello")
    await place.heard(AgentEnded)
"""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import anyio

from hiveyard import agents
from hiveyard.core.commands import Command, Result
from hiveyard.core.events import AgentEnded, AgentEvent, AgentStarted
from hiveyard.core.ports import AgentTerminal, HasTerminal, Parser, Turn
from hiveyard.kit import process
from hiveyard.testing.model import ScriptedModel, scripted_model
from hiveyard.testing.script import Script
from tests.agents.real import AS_NOBODY, HostYard, _give_away

LIMIT = 90.0


@dataclass(kw_only=True)
class Place:
    """A terminal of an agent. `events` are those of its feed so far; `machine` is the process whose network it uses."""

    yard: HostYard
    agent: HasTerminal
    turn: Turn
    model: ScriptedModel
    machine: int
    events: list[AgentEvent] = field(default_factory=list)

    @property
    def agent_terminal(self) -> AgentTerminal:
        return self.agent.agent_terminal(self.turn)

    @property
    def feed(self) -> bytes:
        path = Path(self.agent_terminal.feed)
        return path.read_bytes() if path.exists() else b""

    async def ready(self) -> None:
        """Its tmux server answers."""
        for _ in range(200):
            if (await self.tmux("set", "-g", "remain-on-exit", "off")).ok:
                return
            await anyio.sleep(0.05)
        raise AssertionError("tmux did not start")

    async def sit(self, **changes: Any) -> None:
        """Start the program in the terminal `agent`."""
        self.turn = replace(self.turn, **changes)
        command = self.agent_terminal.terminal.command
        script = self.yard.root / "sit.sh"
        exports = [f"export {name}={shlex.quote(value)}" for name, value in command.env.items()]
        lines = [*exports, f"cd {shlex.quote(str(command.cwd))}", f"exec {shlex.join(command.words())}"]
        script.write_text("\n".join(lines))
        _give_away(self.yard.root)
        made = await self.tmux("new-session", "-d", "-s", "agent", "-x", "120", "-y", "40", "sh", str(script))
        assert made.ok, made.stderr
        starts = self._count(AgentStarted)
        await self.until(lambda: self._count(AgentStarted) > starts)

    async def say(self, text: str) -> Result:
        return await self.run(self.agent.send_prompt(self._prompted(text)))

    async def interrupt(self) -> Result:
        return await self.run(self.agent.interrupt(self.turn))

    async def press(self, *keys: str) -> None:
        """Press keys as a person would: words of several characters are typed."""
        for key in keys:
            done = await self.tmux("send-keys", "-t", "agent:", *(("-l",) if len(key) > 6 else ()), key)
            assert done.ok, done.stderr
            await anyio.sleep(0.3)

    async def screen(self) -> str:
        return (await self.tmux("capture-pane", "-p", "-t", "agent:")).stdout.decode()

    async def shows(self, words: str) -> None:
        for _ in range(100):
            if words in await self.screen():
                return
            await anyio.sleep(0.1)
        raise AssertionError(f"{words!r} is not on the screen:\n{await self.screen()}")

    async def leave(self) -> None:
        """The terminal goes away under the program."""
        await self.tmux("kill-session", "-t", "=agent")
        await self.until(lambda: b'"seat":"ended"' in self.feed[-100:])

    async def heard(self, kind: type[AgentEvent], times: int = 1) -> AgentEvent:
        """Wait until the feed told so many events of a kind; returns the last of them."""
        await self.until(lambda: self._count(kind) >= times)
        return [event for event in self.events if isinstance(event, kind)][times - 1]

    async def ended(self, times: int = 1) -> AgentEnded:
        return cast(AgentEnded, await self.heard(AgentEnded, times))

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.move_on_after(LIMIT):
            while True:
                self.events = heard(self.agent.feed_parser(), self.feed)
                if condition():
                    return
                await anyio.sleep(0.1)
        told = "\n".join(map(repr, self.events[-12:]))
        raise AssertionError(f"it did not come to pass; heard so far:\n{told}\non the screen:\n{await self.screen()}")

    async def tmux(self, *words: str) -> Result:
        return await self.run(Command(argv=("tmux", *words)))

    async def run(self, command: Command) -> Result:
        """A command in the guest, as its user."""
        inside = ["nsenter", "-t", str(self.machine), "-n", "--"]
        argv = [*inside, *AS_NOBODY, *command.words()]
        with anyio.fail_after(LIMIT * 3):
            done = await process.run(argv, env=_env(self.yard), cwd=self.yard.repo)
        return Result(done.status, done.stdout, done.stderr)

    def _prompted(self, text: str) -> Turn:
        file = self.yard.root / "prompt.txt"
        file.write_text(text, encoding="utf-8")
        file.chmod(0o644)
        return replace(self.turn, prompt=str(file))

    def _count(self, kind: type[AgentEvent]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


def heard(listener: Parser, feed: bytes) -> list[AgentEvent]:
    """Return the events of the complete lines of a feed."""
    return [event for line in feed.split(b"\n")[:-1] for event in listener.feed(line)]


@asynccontextmanager
async def sitting(
    yard: HostYard, program: str, script: Script = (), *, scripts: Mapping[str, Script] | None = None, **turn: Any
) -> AsyncIterator[Place]:
    """A machine of its own with a tmux server, in which a seat can be taken while the block lasts."""
    socket = yard.root / "model.sock"
    socket.unlink(missing_ok=True)
    _give_away(yard.root)
    apart = yard.apart(socket)
    async with (
        scripted_model(script, scripts=scripts, socket=socket) as model,
        process.running([*apart, "tmux", "-f", "/dev/null", "-D"], env=_env(yard), cwd=yard.repo) as machine,
    ):
        place = Place(
            yard=yard,
            agent=cast(HasTerminal, agents.by_name(program)),
            turn=yard.turn(prompt="", name="agent", **turn),
            model=model,
            machine=machine.pid,
        )
        await place.ready()
        yield place
        await place.tmux("kill-server")


def _env(yard: HostYard) -> dict[str, str]:
    path = os.pathsep.join([*(str(program.parent) for program in yard.programs.values()), "/usr/bin", "/bin"])
    tmp = str(yard.root / "tmp")
    home = {"HOME": str(yard.root / "home"), "SHELL": "/bin/bash", "TMPDIR": tmp, "TMUX_TMPDIR": tmp}
    return {**home, "PATH": path, "LANG": "C.UTF-8", **yard.env}
