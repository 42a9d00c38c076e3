"""Run an agent's process for one prompt: its output becomes events, and its end is judged.

Every step is safe to repeat: the process is started once by name, and output is read from the last journaled offset. So
a new daemon continues after a kill.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import NamedTuple

from hiveyard.core.commands import ProcessInfo, ProcessSpec
from hiveyard.core.errors import AgentFlood, BadInput, ProcessError
from hiveyard.core.events import AnyBody, Notice, TurnStarted
from hiveyard.core.ports import Agent, Guest, ProcessManager, Verdict
from hiveyard.engine.event_log import Entry
from hiveyard.engine.turns.agent_runner import GRACE, AgentRunner
from hiveyard.engine.turns.decoder import OutputDecoder
from hiveyard.engine.turns.stop import Stop
from hiveyard.engine.turns.turn_queue import TurnEntry
from hiveyard.engine.turns.watchdog import Limit, Liveness, watch
from hiveyard.kit.group import together
from hiveyard.kit.lines import LineSplitter
from hiveyard.kit.text import decode
from hiveyard.store import journal, views
from hiveyard.store.views import TurnRow

FIRST = 1
"""The number of the only turn."""


class Ended(NamedTuple):
    """The result of a turn's process."""

    verdict: Verdict
    exit_code: int | None

    @property
    def is_known(self) -> bool:
        """Whether the process reported its end: an exit code, or success."""
        return self.exit_code is not None or self.verdict.ok


UNKNOWN = Ended(Verdict(False), None)


@dataclass(kw_only=True)
class OneShotRunner(AgentRunner):
    """An agent in a process that ends with its turn. `program` is its name and version; `stop` is requested when the
    turn reaches `timeout` seconds or is silent for too long. `ended` is set at the end of the process."""

    agent: Agent
    program: str
    timeout: float
    stop: Stop
    life: Liveness
    ended: Ended = UNKNOWN

    @property
    def _manager(self) -> ProcessManager:
        return self.resources.manager

    @property
    def _spec(self) -> ProcessSpec:
        return replace(self.agent.process(self.turn), output_limit=self.resources.settings.output_limit_mib << 20)

    async def begin(self, guest: Guest, *, fresh: bool) -> ProcessInfo:
        return await self._manager.start(guest, self._spec)

    def begun(self, info: ProcessInfo) -> Sequence[TurnEntry]:
        started = TurnStarted(agent=self.agent.name, program=self.program, model=self.turn.model or "", pid=info.pid)
        return [TurnEntry(FIRST, Entry(started))]

    async def follow(self, guest: Guest, info: ProcessInfo) -> None:
        row = await self._row()
        limit = Limit((row.started_at or self.resources.clock.now()) + self.timeout, self.timeout)
        self.life.record()
        async with together() as group:
            clock, settings = self.resources.clock, self.resources.settings
            group.start_soon(watch, clock, settings, limit, self.life, self.stop, name="watchdog")
            await self._read_to_end(guest, row.output_offset)
            group.cancel_scope.cancel()

    async def read_rest(self, guest: Guest) -> None:
        try:
            await self._read_to_end(guest, (await self._row()).output_offset)
        except ProcessError as error:
            message = f"the agent's last output could not be read: {error.message}"
            await self.resources.event_log.record(self.session, Notice(message=message, code=error.code))

    async def end(self, guest: Guest, *, grace: float = GRACE) -> ProcessInfo:
        return await self._manager.stop(guest, self._spec.name, grace=grace)

    async def interrupt(self, guest: Guest) -> None:
        raise BadInput("the agent has one turn only: an interrupt would end its task", hint=f"hv cancel {self.session}")

    async def add(self, text: str, *facts: AnyBody, woken_by: Sequence[str] = ()) -> int:
        raise BadInput("the agent takes one prompt only", hint=f"hv wait {self.session}, then hv send")

    # --- output ------------------------------------------------------------------------------------------------------

    async def _row(self) -> TurnRow:
        return await self.resources.event_log.read(lambda conn: views.turn(conn, self.session, FIRST))

    async def _read_to_end(self, guest: Guest, offset: int) -> None:
        """Journal the output until the process has ended, and keep how it ended."""
        decoder = await self._decoder(offset)
        await self._read(guest, decoder)
        info = await self._manager.get(guest, self._spec.name)
        errors = await self._manager.logs(guest, self._spec.name, stream="stderr", lines=50)
        self.ended = Ended(decoder.verdict(info.exit_code, decode(errors)), info.exit_code)

    async def _decoder(self, offset: int) -> OutputDecoder:
        decoder = OutputDecoder(self.agent.parser(), offset)
        lines = await self.resources.event_log.read(lambda conn: list(journal.raw_lines(conn, self.session, FIRST)))
        decoder.replay(lines)
        return decoder

    async def _read(self, guest: Guest, decoder: OutputDecoder) -> None:
        offset, settings = decoder.read, self.resources.settings
        splitter = LineSplitter(limit=settings.line_limit_mib << 20, offset=offset)
        async with aclosing(self._manager.follow(guest, self._spec.name, offset=offset)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                self.life.record()
                if lines := splitter.feed(chunk):
                    await self._record(decoder, decoder.entries(lines))
                if splitter.offset >= settings.output_limit_mib << 20:
                    self.stop.request(_flood(settings.output_limit_mib))
        await self._record(decoder, [*decoder.entries(splitter.finish()), *decoder.rest()])

    async def _record(self, decoder: OutputDecoder, entries: Sequence[Entry]) -> None:
        if entries:
            await self.resources.event_log.record_output(self.session, FIRST, entries, decoder.read)


def _flood(limit_mib: int) -> AgentFlood:
    return AgentFlood(
        f"the agent wrote more than {limit_mib} MiB of output and was stopped",
        hint="[engine] output_limit_mib in the settings changes the limit",
    )
