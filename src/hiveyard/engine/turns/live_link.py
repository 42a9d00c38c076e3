"""A connection with an agent's live process: a driver that knows what the journal knows, and the way to the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
import anyio.to_thread

from hiveyard.core.drivers import Answer, Driver, Step
from hiveyard.core.drivers import Line as InputLine
from hiveyard.core.errors import HiveyardError, ProcessEnded
from hiveyard.core.events import (
    AgentEvent,
    AgentPrompted,
    AnyBody,
    AskAnswered,
    Event,
    LiveInterrupted,
    LiveSteered,
    ModelChosen,
    SessionChanged,
)
from hiveyard.core.ports import Guest, ProcessManager, Verdict
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.turns.decoder import OutputDecoder
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.store import lineage


class _DriverParser:
    """A driver as the parser of an OutputDecoder; the lines that it wants to send are collected."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.lines: list[InputLine] = []

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        step = self._driver.feed(line)
        self.lines += step.lines
        return step.events

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        raise NotImplementedError("a driver reports the end of each turn itself")


@dataclass(kw_only=True)
class LiveLink:
    """A connection with a process. `renewing` is set when another process shall continue the conversation; `stale`
    when the driver may know more than the journal, so that another link is needed. `lock` is held while the driver is
    told something."""

    guest: Guest
    manager: ProcessManager
    process: str
    driver: Driver
    prompts: Prompts
    decoder: OutputDecoder
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    lock: anyio.Lock = field(default_factory=anyio.Lock)
    renewing: bool = False
    stale: bool = False
    _parser: _DriverParser

    @classmethod
    def of(
        cls, guest: Guest, manager: ProcessManager, process: str, driver: Driver, prompts: Prompts, read: int
    ) -> LiveLink:
        """Return a link whose driver knows nothing yet; `read` is how much of the output is in the journal."""
        parser = _DriverParser(driver)
        return cls(
            guest=guest,
            manager=manager,
            process=process,
            driver=driver,
            prompts=prompts,
            decoder=OutputDecoder(parser, read),
            _parser=parser,
        )

    async def catch_up(self, event_log: EventLog, session: str, running: int | None) -> None:
        """Let the driver read the journal, and send what belongs to the turn `running`: the process may not have it."""
        lines: list[InputLine] = [*self.driver.start().lines]
        after = 0
        while page := await event_log.read(lambda conn, after=after: lineage.live_events(conn, session, after)):  # type: ignore[misc]
            for event in page:
                if event.raw is not None:
                    self.decoder.replay([event.raw])
                lines += await self._replayed(event, running)
            after = page[-1].seq
        self.take_lines()  # sent before their output was journaled
        await self.send(lines)

    async def _replayed(self, event: Event, running: int | None) -> Sequence[InputLine]:
        """Tell the driver what the program was told; return the lines of the running turn."""
        body = event.body
        if isinstance(body, AgentPrompted):
            lines = await self.prompt_lines(running) if running is not None and event.turn == running else ()
            self.driver.prompt_sent(body.text)
            return lines
        if (act := act_of(body)) is not None:
            with suppress(HiveyardError):  # the program does not take it any more: its turn has ended
                step = act(self.driver)
                return step.lines if event.turn == running else ()
        return ()

    async def prompt_lines(self, turn: int) -> Sequence[InputLine]:
        """Return the lines of a turn's prompt. Raises SessionDamaged if it is lost; AgentFailed if the program cannot
        take one."""
        data = await anyio.to_thread.run_sync(self.prompts.read, turn)
        return self.driver.prompt(f"prompt-{turn}", data.decode(errors="replace"))

    def take_lines(self) -> list[InputLine]:
        """Return the lines that the driver wants to send after the output that it was given."""
        lines, self._parser.lines = self._parser.lines, []
        return lines

    async def send(self, lines: Sequence[InputLine]) -> None:
        """Send lines; a line that was sent before is not sent again."""
        with suppress(ProcessEnded):  # its end is in its output
            for line in lines:
                await self.manager.send(self.guest, self.process, line.key, line.data)


def act_of(body: AnyBody) -> Callable[[Driver], Step] | None:
    """Return how a driver is told an input; None for an event that is no input, or a prompt."""
    if isinstance(body, LiveSteered):
        return lambda driver: driver.steer(body.key, body.text)
    if isinstance(body, LiveInterrupted):
        return lambda driver: driver.interrupt(body.key)
    if isinstance(body, AskAnswered) and body.request:  # without one, no program asked it
        answer = Answer(allow=body.allow, option=body.option, message=body.message)
        return lambda driver: driver.answer(body.request, answer)
    if isinstance(body, ModelChosen | SessionChanged) and (model := body.model) is not None:
        return lambda driver: driver.choose(body.key, model)
    return None
