"""One turn: the agent's process in the guest, its output turned into events as it comes, and the ways it may end.

Every step is safe to repeat: the process is started once by name, the output is read on from the last journaled
offset. So a daemon that was killed goes on where it stood.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.commands import ProcessInfo, ProcessSpec
from hiveyard.core.errors import AgentFlood, DiskReserve
from hiveyard.core.events import TurnStarted
from hiveyard.core.ports import Agent, Guest, ProcessManager, Turn, Verdict
from hiveyard.engine.event_log import Entry, EventLog
from hiveyard.engine.settings import EngineSettings
from hiveyard.engine.turns.decoder import OutputDecoder
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.watchdog import Life, Limit, watch, watch_disk
from hiveyard.kit.group import together
from hiveyard.kit.lines import LineSplitter
from hiveyard.kit.text import decode
from hiveyard.store import journal
from hiveyard.store.views import TurnRow

GRACE = 20.0
"""Seconds between asking an agent to stop and killing it: it may want to save its conversation."""


class Ended(NamedTuple):
    """What is known of a turn when its process has ended."""

    verdict: Verdict
    exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRunner:
    """A turn that is about to run, or that ran on while nobody looked."""

    session: str
    number: int
    agent: Agent
    turn: Turn
    program: str
    manager: ProcessManager
    event_log: EventLog
    settings: EngineSettings
    host_path: Path
    timeout: float
    stop: Stop
    life: Life

    @property
    def spec(self) -> ProcessSpec:
        return replace(self.agent.process(self.turn), output_limit=self.settings.output_limit_mib << 20)

    async def run(self, guest: Guest, row: TurnRow | None) -> Ended:
        """Start or rejoin the process and stay with it to its end. Raises MachineLost, ProcessNotStarted."""
        info = await self.manager.start(guest, self.spec)
        started_at = row.started_at if row is not None and row.started_at is not None else None
        if started_at is None:
            await self._started(info)
            started_at = self.event_log.clock.now()
        meaning = await self._meaning(row.output_offset if row is not None else 0)
        async with together() as group:
            group.start_soon(self._stop_when_asked, guest, name="stop")
            group.start_soon(
                watch,
                self.event_log.clock,
                self.settings,
                Limit(started_at + self.timeout, self.timeout),
                self.life,
                self.stop,
                name="watchdog",
            )
            group.start_soon(
                watch_disk, self.event_log.clock, self.settings, self.host_path, self.stop, name="watch the disk"
            )
            await self._follow(guest, meaning)
            group.cancel_scope.cancel()
        return await self._ended(guest, meaning)

    async def rest(self, guest: Guest, row: TurnRow) -> Ended:
        """What is left to read of a process whose machine went down, from a new machine. Raises NoSuchProcess."""
        meaning = await self._meaning(row.output_offset)
        await self._follow(guest, meaning)
        return await self._ended(guest, meaning)

    async def _ended(self, guest: Guest, meaning: OutputDecoder) -> Ended:
        info = await self.manager.get(guest, self.spec.name)
        said = await self.manager.logs(guest, self.spec.name, stream="stderr", lines=50)
        verdict = meaning.verdict(info.exit_code, decode(said))
        return Ended(verdict, info.exit_code)

    async def _started(self, info: ProcessInfo) -> None:
        await self.event_log.record(
            self.session,
            TurnStarted(agent=self.agent.name, program=self.program, model=self.turn.model or "", pid=info.pid),
            turn=self.number,
        )

    async def _meaning(self, offset: int) -> OutputDecoder:
        meaning = OutputDecoder(self.agent.parser(), offset)
        meaning.replay(await self.event_log.read(lambda conn: list(journal.raw_lines(conn, self.session, self.number))))
        return meaning

    async def _follow(self, guest: Guest, meaning: OutputDecoder) -> None:
        offset = meaning.read
        splitter = LineSplitter(limit=self.settings.line_limit_mib << 20, offset=offset)
        async with aclosing(self.manager.follow(guest, self.spec.name, offset=offset)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                self.life.sign()
                if lines := splitter.feed(chunk):
                    await self._record(meaning, meaning.entries(lines))
                if splitter.offset >= self.settings.output_limit_mib << 20:
                    self.stop.ask(self._flood())
        await self._record(meaning, [*meaning.entries(splitter.finish()), *meaning.rest()])

    async def _record(self, meaning: OutputDecoder, entries: Sequence[Entry]) -> None:
        if entries:
            await self.event_log.record_output(self.session, self.number, entries, meaning.read)

    def _flood(self) -> AgentFlood:
        return AgentFlood(
            f"the agent wrote more than {self.settings.output_limit_mib} MiB of output and was stopped",
            hint="[engine] output_limit_mib in the settings moves the limit",
        )

    async def _stop_when_asked(self, guest: Guest) -> None:
        # A disk that fills up leaves no time for anything.
        grace = 0.0 if isinstance(await self.stop.asked(), DiskReserve) else GRACE
        await self.manager.stop(guest, self.spec.name, grace=grace)
