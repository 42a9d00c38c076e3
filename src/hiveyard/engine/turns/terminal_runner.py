"""Run an agent's own terminal program in a guest: read its feed, and send prompts through its adapter.

The next daemon can repeat each step: the program is started once by name, the feed is read from the last journaled
byte, and a prompt waits in the session's directory until it was taken."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Protocol

import anyio
import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.commands import Command, ProcessInfo, ProcessSpec, ProcessStatus
from hiveyard.core.errors import (
    AgentFailed,
    HiveyardError,
    MachineLost,
    NoSuchProcess,
    SessionDamaged,
    StoreUnusable,
)
from hiveyard.core.events import AgentPrompted, Failure, Notice, TurnEnded
from hiveyard.core.ports import Agent, AgentTerminal, Guest, HasTerminal, ProcessManager
from hiveyard.engine.event_log import Entry
from hiveyard.engine.turns.agent_runner import GRACE, AgentRunner
from hiveyard.engine.turns.decoder import OutputDecoder
from hiveyard.engine.turns.turn_tracker import PromptText, TurnTracker
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.kit.group import together
from hiveyard.kit.lines import Line, LineSplitter
from hiveyard.kit.text import decode, one_line
from hiveyard.store import lineage, views

TERMINAL = "agent"
"""The name of the terminal's process, and of its tmux session."""
PROMPT_TIMEOUT = 1800.0
"""Seconds until a program must have taken a prompt; the adapters give up before."""
INTERRUPT = 60.0


class TerminalAgent(Agent, HasTerminal, Protocol):
    """An agent that has a terminal program."""


@dataclass(kw_only=True)
class TerminalRunner(AgentRunner):
    """An agent at its own terminal."""

    agent: TerminalAgent
    queue: TurnTracker

    @property
    def agent_terminal(self) -> AgentTerminal:
        return self.agent.agent_terminal(self.turn)

    # --- the program -------------------------------------------------------------------------------------------------

    async def begin(self, guest: Guest, *, fresh: bool) -> ProcessInfo:
        terminals, terminal = self.resources.terminals, self.agent_terminal.terminal
        if fresh:
            if running := await _find_running(guest, terminals, terminal):
                return running
            await self._continue_at_end_of_feed(guest)
        return await terminals.start(guest, terminal)

    async def _continue_at_end_of_feed(self, guest: Guest) -> None:
        """Continue where the feed ends, after a fork or a rewind, whose journal ends elsewhere; and if the journal is
        ahead of it, because the machine before was lost with what it had not written to its disk."""
        event_log, size = self.resources.event_log, await _size(guest, self.agent_terminal.feed)
        row = await event_log.read(lambda conn: views.session(conn, self.session))
        if await event_log.read(lambda conn: lineage.pending_start(conn, self.session)) is not None:
            await event_log.move_feed(self.session, size)
        elif row.feed_offset > size:
            message = (
                f"the last machine was lost before its last {row.feed_offset - size} bytes of activity reached the"
                " disk: the agent may not remember its last steps"
            )
            await event_log.move_feed(self.session, size, Notice(message=message))

    async def follow(self, guest: Guest, info: ProcessInfo) -> None:
        decoder = await self._decoder()
        offset = await self._catch_up(guest, decoder)
        await self._repeat_turn_over()
        async with together() as group:
            group.start_soon(self._send_prompts, guest, name="send prompts")
            await self._read_feed(guest, decoder, offset, info.pid)
            group.cancel_scope.cancel()

    async def end(self, guest: Guest, *, grace: float = GRACE) -> ProcessInfo:
        return await self.resources.terminals.stop(guest, TERMINAL, grace=grace)

    # --- the feed ----------------------------------------------------------------------------------------------------

    async def _decoder(self) -> OutputDecoder:
        def replayed(conn: Connection) -> OutputDecoder:
            decoder = OutputDecoder(self.agent.feed_parser(), views.session(conn, self.session).feed_offset)
            decoder.replay(self.resources.workspace(self.session).heard_lines())
            decoder.replay(lineage.raw_lines(conn, self.session))
            return decoder

        return await self.resources.event_log.read(replayed)

    async def _catch_up(self, guest: Guest, decoder: OutputDecoder) -> int:
        """Read the feed written while no daemon ran, so that a prompt that was taken is not sent again. Returns the
        offset to continue from."""
        if not await guest.exists(self.agent_terminal.feed):
            return decoder.read
        return await self._read_feed(guest, decoder, decoder.read, _NO_PROCESS)

    async def _read_feed(self, guest: Guest, decoder: OutputDecoder, offset: int, pid: int | None) -> int:
        """Journal the feed until process `pid` has ended; return the end of the last complete line."""
        splitter = LineSplitter(limit=self.resources.settings.line_limit_mib << 20, offset=offset)
        async with aclosing(guest.follow(self.agent_terminal.feed, offset=offset, pid=pid)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if lines := splitter.feed(chunk):
                    await self._record(decoder, lines)
                    offset = lines[-1].end
        return offset

    async def _record(self, decoder: OutputDecoder, lines: Sequence[Line]) -> None:
        # Shielded, so that a cancellation here does not leave the tracker ahead of the journal.
        with anyio.CancelScope(shield=True):
            entries = decoder.entries(lines)
            placed = self.queue.assign_feed(entries, await self._waiting_prompts(entries))
            if not placed:
                return
            await self.resources.event_log.record_feed(self.session, placed, decoder.read)
        self._notify()
        if any(isinstance(entry.body, TurnEnded) for _, entry in placed):
            self.on_turn_over()

    async def _waiting_prompts(self, entries: Sequence[Entry]) -> dict[int, PromptText]:
        """Return the waiting prompts that the entries can refer to. A lost prompt is left out: its turn fails when it
        is
        sent."""
        prompts = sum(isinstance(entry.body, AgentPrompted) for entry in entries)
        found: dict[int, PromptText] = {}
        for number in self.queue.waiting[:prompts]:
            with suppress(SessionDamaged):
                found[number] = await anyio.to_thread.run_sync(self._prompt_text, number)
        return found

    def _prompt_text(self, number: int) -> PromptText:
        return PromptText(self.prompts.read(number).decode(errors="replace"))

    # --- prompts -----------------------------------------------------------------------------------------------------

    async def interrupt(self, guest: Guest) -> None:
        done = await guest.run(self.agent.interrupt(self.turn), timeout=INTERRUPT, limit=64 << 10)
        if not done.ok:
            raise AgentFailed(f"the agent could not be interrupted: {one_line(decode(done.stderr))}")

    async def _send_prompts(self, guest: Guest) -> None:
        while True:
            changed = self._changed
            if (number := self.queue.next) is not None:
                await self._send_prompt(guest, number)
                continue
            await changed.wait()

    async def _send_prompt(self, guest: Guest, number: int) -> None:
        try:
            path = await self.prompts.deliver(guest, number)
            say = self.agent.send_prompt(replace(self.turn, prompt=path))
            done = await guest.run(say, timeout=PROMPT_TIMEOUT, limit=64 << 10)
            failure = None if done.ok else _not_taken(one_line(decode(done.stderr)) or f"exit code {done.status}")
        except (StoreUnusable, MachineLost):
            raise  # it is unknown whether it was sent: it is sent again later, and the adapter takes it only once
        except HiveyardError as error:
            failure = as_failure(error)
        if failure is None:
            self.queue.mark_sent(number)
        elif self.queue.next == number:  # after a user's turn that came first, it is sent again
            await self.resources.event_log.record(self.session, self.queue.reject(number, failure), turn=number)


_NO_PROCESS = 2**31 - 1
"""A pid that no Linux process has: following until its end reads the existing data."""


async def _find_running(guest: Guest, manager: ProcessManager, spec: ProcessSpec) -> ProcessInfo | None:
    """Return the running process of that name in a machine from a live snapshot; remove one that has ended."""
    with suppress(NoSuchProcess):
        info = await manager.get(guest, spec.name)
        if info.status is ProcessStatus.RUNNING:
            return info
        await manager.remove(guest, spec.name)
    return None


async def _size(guest: Guest, path: str) -> int:
    """Return the size of a file in bytes, 0 if there is none."""
    done = await guest.run(Command(argv=("stat", "-c", "%s", "--", path), cwd="/"), timeout=60, limit=64)
    return int(done.stdout) if done.ok and done.stdout.strip().isdigit() else 0


def _not_taken(said: str) -> Failure:
    return Failure(code=AgentFailed.code, message=f"the agent did not take the prompt: {said}", hint="hv attach")
