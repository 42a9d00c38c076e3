"""An agent's own terminal program at work in a guest: heard by its feed, told by its adapter.

Everything here can be done again by the next daemon: the program is started once by name, the feed is read on from
the last journaled byte, and a prompt waits in the session's directory until it was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import anyio
import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.commands import ProcessInfo, ProcessSpec, ProcessStatus
from hiveyard.core.errors import (
    AgentFailed,
    HiveyardError,
    MachineLost,
    NoSuchProcess,
    SessionDamaged,
    StoreUnusable,
)
from hiveyard.core.events import AgentPrompted, Failure, TurnEnded
from hiveyard.core.ports import Agent, AgentTerminal, Guest, HasTerminal, ProcessManager, Turn
from hiveyard.engine.event_log import Entry
from hiveyard.engine.resources import Resources
from hiveyard.engine.turns.decoder import OutputDecoder
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.turns.turn_tracker import TurnTracker, Wording
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.kit.group import together
from hiveyard.kit.lines import Line, LineSplitter
from hiveyard.kit.text import decode, one_line
from hiveyard.store import lineage, views

TERMINAL = "agent"
"""The name of the terminal's process, and of its tmux session."""
GRACE = 10.0
"""Seconds that the program gets to save what it remembers."""
TOLD = 1800.0
"""Seconds that a program may take until it takes a prompt; the adapters give up before."""
INTERRUPT = 60.0


class TerminalAgent(Agent, HasTerminal, Protocol):
    """An agent that has a terminal program."""


@dataclass(kw_only=True)
class TerminalRunner:
    """The program of one session. `turn` is what its adapter needs to know, without a prompt. `on_turn_over` is called
    when a turn has ended and that is journaled, and once when the last one has before; it must return at once."""

    session: str
    agent: TerminalAgent
    turn: Turn
    tracker: TurnTracker
    prompts: Prompts
    resources: Resources
    on_turn_over: Callable[[], None] = lambda: None
    _changed: anyio.Event = field(default_factory=anyio.Event)
    _adding: anyio.Lock = field(default_factory=anyio.Lock)
    _looked_back: bool = False

    @property
    def agent_terminal(self) -> AgentTerminal:
        return self.agent.agent_terminal(self.turn)

    # --- the program -------------------------------------------------------------------------------------------------

    async def begin(self, guest: Guest, *, fresh: bool) -> ProcessInfo:
        """Have the program run. `fresh`: the machine is a new one, and what is known of processes is of another's.
        Raises ProcessNotStarted."""
        terminals, terminal = self.resources.terminals, self.agent_terminal.terminal
        if fresh and (running := await _went_along(guest, terminals, terminal)):
            return running
        return await terminals.start(guest, terminal)

    async def attend(self, guest: Guest, info: ProcessInfo) -> None:
        """Hear the program out, and say what waits to be said, until the program has ended."""
        meaning = await self._meaning()
        offset = await self._catch_up(guest, meaning)
        await self._look_back()
        async with together() as group:
            group.start_soon(self._speak, guest, name="speak")
            await self._listen(guest, meaning, offset, info.pid)
            group.cancel_scope.cancel()

    async def _look_back(self) -> None:
        """What was to be done at the end of the last turn may have died with a daemon."""
        first, self._looked_back = not self._looked_back, True
        if first and await self.resources.event_log.read(lambda conn: lineage.is_at_turn_end(conn, self.session)):
            self.on_turn_over()

    async def end(self, guest: Guest, *, grace: float = GRACE) -> ProcessInfo:
        """Ask the program to end, and have it ended after `grace` seconds."""
        return await self.resources.terminals.stop(guest, TERMINAL, grace=grace)

    # --- listening ---------------------------------------------------------------------------------------------------

    async def _meaning(self) -> OutputDecoder:
        def replayed(conn: Connection) -> OutputDecoder:
            meaning = OutputDecoder(self.agent.feed_parser(), views.session(conn, self.session).feed_offset)
            meaning.replay(self.resources.workspace(self.session).heard_lines())
            meaning.replay(lineage.raw_lines(conn, self.session))
            return meaning

        return await self.resources.event_log.read(replayed)

    async def _catch_up(self, guest: Guest, meaning: OutputDecoder) -> int:
        """Read what was said while nobody listened, so that a prompt that was taken is not said again. Returns where
        the feed goes on."""
        if not await guest.exists(self.agent_terminal.feed):
            return meaning.read
        return await self._listen(guest, meaning, meaning.read, _NOBODY)

    async def _listen(self, guest: Guest, meaning: OutputDecoder, offset: int, pid: int | None) -> int:
        """Journal the feed until process `pid` has ended; returns where the last whole line ended."""
        splitter = LineSplitter(limit=self.resources.settings.line_limit_mib << 20, offset=offset)
        async with aclosing(guest.follow(self.agent_terminal.feed, offset=offset, pid=pid)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if lines := splitter.feed(chunk):
                    await self._record(meaning, lines)
                    offset = lines[-1].end
        return offset

    async def _record(self, meaning: OutputDecoder, lines: Sequence[Line]) -> None:
        # Shielded: the course must not know more than the journal when the guest is left in the middle of this.
        with anyio.CancelScope(shield=True):
            entries = meaning.entries(lines)
            placed = self.tracker.placed(entries, await self._wordings(entries))
            if not placed:
                return
            await self.resources.event_log.record_feed(self.session, placed, meaning.read)
        self._tell()
        if any(isinstance(entry.body, TurnEnded) for _, entry in placed):
            self.on_turn_over()

    async def _wordings(self, entries: Sequence[Entry]) -> dict[int, Wording]:
        """What waits to be said, as far as the entries can tell of it. One whose file is lost is left out: its turn
        fails when it is to be said."""
        prompts = sum(isinstance(entry.body, AgentPrompted) for entry in entries)
        found: dict[int, Wording] = {}
        for number in self.tracker.waiting[:prompts]:
            with suppress(SessionDamaged):
                found[number] = await anyio.to_thread.run_sync(self._wording, number)
        return found

    def _wording(self, number: int) -> Wording:
        return Wording(self.prompts.kept(number).decode(errors="replace"))

    # --- speaking ----------------------------------------------------------------------------------------------------

    async def add(self, text: str) -> int:
        """Take a prompt for the next turn; returns the turn's number when it is journaled."""
        async with self._adding:
            return await self._add(text)

    async def _add(self, text: str) -> int:
        # Kept before it waits: from then on it may be said at once. Whoever typed meanwhile took the number.
        number = 0
        while number != self.tracker.last + 1:
            number = self.tracker.last + 1
            await self.prompts.keep(number, text)
        number, created = self.tracker.added(self.turn.model or "")
        # Shielded, and taken back: the course must know what the journal knows, or it is said unasked.
        with anyio.CancelScope(shield=True):
            try:
                await self.resources.event_log.record(self.session, created, turn=number)
            except BaseException:
                self.tracker.withdrawn(number)
                raise
        self._tell()
        return number

    async def interrupt(self, guest: Guest) -> None:
        """End the turn at work, and keep the program. Raises AgentFailed when it does not listen."""
        done = await guest.run(self.agent.interrupt(self.turn), timeout=INTERRUPT, limit=64 << 10)
        if not done.ok:
            raise AgentFailed(f"the agent could not be interrupted: {one_line(decode(done.stderr))}")

    async def _speak(self, guest: Guest) -> None:
        while True:
            changed = self._changed
            if (number := self.tracker.next) is not None:
                await self._say(guest, number)
                continue
            await changed.wait()

    async def _say(self, guest: Guest, number: int) -> None:
        try:
            path = await self.prompts.hand_over(guest, number)
            say = self.agent.send_prompt(replace(self.turn, prompt=path))
            done = await guest.run(say, timeout=TOLD, limit=64 << 10)
            failure = None if done.ok else _not_taken(one_line(decode(done.stderr)) or f"exit code {done.status}")
        except (StoreUnusable, MachineLost):
            raise  # nobody knows whether it was said: it is said again to whoever is there then, who takes it once
        except HiveyardError as error:
            failure = as_failure(error)
        if failure is None:
            self.tracker.said(number)
        elif self.tracker.next == number:  # when a person's turn came before it, it is said after that one
            await self.resources.event_log.record(self.session, self.tracker.refused(number, failure), turn=number)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


_NOBODY = 2**31 - 1
"""A pid that no Linux gives to a process: following until its end reads what there is."""


async def _went_along(guest: Guest, manager: ProcessManager, spec: ProcessSpec) -> ProcessInfo | None:
    """The process of that name that runs in a machine made of a live snapshot; else there is room for one."""
    with suppress(NoSuchProcess):
        info = await manager.get(guest, spec.name)
        if info.status is ProcessStatus.RUNNING:
            return info
        await manager.remove(guest, spec.name)
    return None


def _not_taken(said: str) -> Failure:
    return Failure(code=AgentFailed.code, message=f"the agent did not take the prompt: {said}", hint="hv attach")
