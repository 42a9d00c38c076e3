"""Run one turn: the agent's process in the guest, its output as events, and its end.

Every step is safe to repeat: the process is started once by name, and output is read from the last journaled offset. So
a new daemon continues after a kill.
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
from hiveyard.engine.turns.disk_reserve import watch_disk
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.watchdog import Limit, Liveness, watch
from hiveyard.kit.group import together
from hiveyard.kit.lines import LineSplitter
from hiveyard.kit.text import decode
from hiveyard.store import journal
from hiveyard.store.views import TurnRow

GRACE = 20.0
"""Seconds between asking an agent to stop and killing it: it may want to save its conversation."""


class Ended(NamedTuple):
    """The result of a turn's process."""

    verdict: Verdict
    exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRunner:
    """A turn to run, or one that continued without a daemon."""

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
    life: Liveness

    @property
    def spec(self) -> ProcessSpec:
        return replace(self.agent.process(self.turn), output_limit=self.settings.output_limit_mib << 20)

    async def run(self, guest: Guest, row: TurnRow | None) -> Ended:
        """Start the process, or find the running one, and follow it to its end. Raises MachineLost,
        ProcessNotStarted."""
        info = await self.manager.start(guest, self.spec)
        started_at = row.started_at if row is not None and row.started_at is not None else None
        if started_at is None:
            await self._started(info)
            started_at = self.event_log.clock.now()
        decoder = await self._decoder(row.output_offset if row is not None else 0)
        async with together() as group:
            group.start_soon(self._stop_on_request, guest, name="stop")
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
            await self._follow(guest, decoder)
            group.cancel_scope.cancel()
        return await self._ended(guest, decoder)

    async def read_rest(self, guest: Guest, row: TurnRow) -> Ended:
        """Read the rest of a process's output in a new machine, after the old one was lost. Raises NoSuchProcess."""
        decoder = await self._decoder(row.output_offset)
        await self._follow(guest, decoder)
        return await self._ended(guest, decoder)

    async def _ended(self, guest: Guest, decoder: OutputDecoder) -> Ended:
        info = await self.manager.get(guest, self.spec.name)
        errors = await self.manager.logs(guest, self.spec.name, stream="stderr", lines=50)
        verdict = decoder.verdict(info.exit_code, decode(errors))
        return Ended(verdict, info.exit_code)

    async def _started(self, info: ProcessInfo) -> None:
        await self.event_log.record(
            self.session,
            TurnStarted(agent=self.agent.name, program=self.program, model=self.turn.model or "", pid=info.pid),
            turn=self.number,
        )

    async def _decoder(self, offset: int) -> OutputDecoder:
        decoder = OutputDecoder(self.agent.parser(), offset)
        decoder.replay(await self.event_log.read(lambda conn: list(journal.raw_lines(conn, self.session, self.number))))
        return decoder

    async def _follow(self, guest: Guest, decoder: OutputDecoder) -> None:
        offset = decoder.read
        splitter = LineSplitter(limit=self.settings.line_limit_mib << 20, offset=offset)
        async with aclosing(self.manager.follow(guest, self.spec.name, offset=offset)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                self.life.record()
                if lines := splitter.feed(chunk):
                    await self._record(decoder, decoder.entries(lines))
                if splitter.offset >= self.settings.output_limit_mib << 20:
                    self.stop.request(self._flood())
        await self._record(decoder, [*decoder.entries(splitter.finish()), *decoder.rest()])

    async def _record(self, decoder: OutputDecoder, entries: Sequence[Entry]) -> None:
        if entries:
            await self.event_log.record_output(self.session, self.number, entries, decoder.read)

    def _flood(self) -> AgentFlood:
        return AgentFlood(
            f"the agent wrote more than {self.settings.output_limit_mib} MiB of output and was stopped",
            hint="[engine] output_limit_mib in the settings changes the limit",
        )

    async def _stop_on_request(self, guest: Guest) -> None:
        # When the disk fills up there is no time for a grace period.
        grace = 0.0 if isinstance(await self.stop.wait(), DiskReserve) else GRACE
        await self.manager.stop(guest, self.spec.name, grace=grace)
