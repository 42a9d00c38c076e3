"""Run an agent's process that stays between turns, and speak its protocol with it.

Everything that passes is journaled: the program's output with the offset up to which it was read, and what it is told.
What it is told is journaled first and sent then, always under the same key, and the process manager delivers a key
once. So a new daemon gives a new driver the journal to read, sends again what belongs to the current turn, and goes on;
no prompt is lost and none is told twice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

import anyio
import anyio.to_thread
import msgspec

from hiveyard.core.commands import ProcessInfo, ProcessSpec, ProcessStatus
from hiveyard.core.drivers import Answer, HasDriver
from hiveyard.core.errors import AgentFlood, BadInput, GuestDisconnected, HiveyardError, StoreUnusable
from hiveyard.core.events import (
    TEXT_LIMIT,
    AgentAsked,
    AnyBody,
    AskAnswered,
    LiveInterrupted,
    LiveStarted,
    LiveSteered,
    SessionChanged,
    TurnEnded,
)
from hiveyard.core.ports import Agent, Guest, ProcessManager
from hiveyard.engine.event_log import Entry
from hiveyard.engine.turns.agent_runner import GRACE, AgentRunner
from hiveyard.engine.turns.live_link import LiveLink, act_of
from hiveyard.engine.turns.turn_queue import TurnEntry
from hiveyard.engine.turns.verdict import as_failure
from hiveyard.kit.group import together
from hiveyard.kit.lines import Line, LineSplitter
from hiveyard.kit.names import new_id
from hiveyard.kit.text import decode
from hiveyard.store import lineage
from hiveyard.store.views import AskRow

_PREFIX = "live-"
_LIMIT_MARGIN = 1024
"""The bytes by which a process manager may miss an output's limit."""


class LiveAgent(Agent, HasDriver, Protocol):
    """An agent whose program takes one prompt after another."""


@dataclass(kw_only=True)
class LiveRunner(AgentRunner):
    """An agent in a process that stays between turns."""

    agent: LiveAgent
    _link: LiveLink | None = None
    _connecting: anyio.Lock = field(default_factory=anyio.Lock)

    @property
    def _manager(self) -> ProcessManager:
        return self.resources.manager

    # --- the process -------------------------------------------------------------------------------------------------

    async def begin(self, guest: Guest, *, fresh: bool) -> ProcessInfo:
        """Start the program, unless it runs. In a new machine the conversation is always continued by a new process:
        a copy in a fork's memory knows a door and inputs that are not its own."""
        started = None if fresh else await self._started()
        if started is None:
            await self._end_all(guest)
            started = await self._launch()
        return await self._manager.start(guest, self._spec(started))

    async def _launch(self) -> LiveStarted:
        """Journal that a process starts. It is started once, by its name, however often this daemon ends."""
        conversation = await self.resources.event_log.read(lambda conn: lineage.conversation(conn, self.session))
        started = LiveStarted(process=f"{_PREFIX}{new_id()}", conversation=conversation or "")
        with anyio.CancelScope(shield=True):
            for number, end in self.queue.abort(None):
                await self.resources.event_log.record(self.session, end, turn=number)
            await self.resources.event_log.record(self.session, started)
        return started

    async def _started(self) -> LiveStarted | None:
        return await self.resources.event_log.read(lambda conn: lineage.live_process(conn, self.session))

    def _spec(self, started: LiveStarted) -> ProcessSpec:
        turn = replace(self.turn, name=started.process, conversation=started.conversation or None)
        return replace(self.agent.live_process(turn), output_limit=self.resources.settings.output_limit_mib << 20)

    async def _end_all(self, guest: Guest) -> None:
        """End and remove the processes of before: of another machine, or in the memory of a fork."""
        for info in await self._manager.list(guest):
            if info.name.startswith(_PREFIX):
                if info.status is ProcessStatus.RUNNING:
                    await self._manager.stop(guest, info.name, grace=0.0)
                await self._manager.remove(guest, info.name)

    async def end(self, guest: Guest, *, grace: float = GRACE) -> ProcessInfo:
        started = await self._started()
        assert started is not None, "it began before"
        return await self._manager.stop(guest, started.process, grace=grace)

    async def follow(self, guest: Guest, info: ProcessInfo) -> None:
        await self._repeat_turn_over()
        while True:
            link = await self._attach(guest)
            try:
                with link.scope:
                    await self._attend(link)
            finally:
                self._link = None
            if link.stale:
                continue
            if not link.renewing:
                return
            await self._renew(guest)

    async def _attend(self, link: LiveLink) -> None:
        """Send prompts and journal the output until the process has ended, or shall be replaced."""
        async with together() as group:
            group.start_soon(self._send_prompts, link, name="send prompts")
            await self._read(link)
            group.cancel_scope.cancel()

    async def _renew(self, guest: Guest) -> None:
        """Let another process continue the conversation, so that a new daemon need not read all output of weeks."""
        await self.end(guest)
        await self._end_all(guest)
        await self._manager.start(guest, self._spec(await self._launch()))

    # --- the journal -------------------------------------------------------------------------------------------------

    async def _attach(self, guest: Guest) -> LiveLink:
        """Connect to the process; see `LiveLink.catch_up`."""
        started, event_log = await self._started(), self.resources.event_log
        assert started is not None, "it began before"
        turn = replace(self.turn, name=started.process, conversation=started.conversation or None)
        read = await event_log.read(lambda conn: lineage.feed_offset(conn, self.session))
        driver = self.agent.driver(turn)
        link = LiveLink.of(guest, self._manager, started.process, driver, self.prompts, read)
        async with self._connecting:
            await link.catch_up(event_log, self.session, self.queue.running)
            self._link = link
        return link

    async def _journal(self, link: LiveLink, placed: Sequence[TurnEntry]) -> None:
        """Journal entries and the offset of the output. If that fails, the driver knows more than the journal."""
        try:
            await self.resources.event_log.record_feed(self.session, placed, link.decoder.read)
        except BaseException:
            link.stale = True
            link.scope.cancel()
            raise
        self._notify()
        if any(isinstance(one.entry.body, TurnEnded) for one in placed):
            self.on_turn_over()

    # --- output ------------------------------------------------------------------------------------------------------

    async def _read(self, link: LiveLink) -> None:
        settings = self.resources.settings
        splitter = LineSplitter(limit=settings.line_limit_mib << 20, offset=link.decoder.read)
        follow = self._manager.follow(link.guest, link.process, offset=link.decoder.read)
        async with aclosing(follow) as chunks:  # type: ignore[type-var]  # the port promises one that can be closed
            async for chunk in chunks:
                await self._heard(link, splitter.feed(chunk))
                if splitter.offset > (settings.output_limit_mib << 20) - _LIMIT_MARGIN:
                    await self._manager.stop(link.guest, link.process)
                    raise _flood(settings.output_limit_mib)
                if link.renewing:
                    return
        await self._heard(link, splitter.finish())
        await self._exited(link)

    async def _heard(self, link: LiveLink, lines: Sequence[Line]) -> None:
        """Journal some lines of output, after the driver's own answers to them were sent."""
        if not lines:
            return
        async with link.lock:
            entries = link.decoder.entries(lines)
            await link.send(link.take_lines())
            with anyio.CancelScope(shield=True):
                await self._place(link, entries)
            link.renewing = self._is_long(link)
        self._notify()

    def _is_long(self, link: LiveLink) -> bool:
        """Whether the process shall be replaced: it has written much, and is between two turns."""
        long = link.decoder.read >= self.resources.settings.live_output_mib << 20
        return long and self.queue.running is None and link.driver.ready and link.driver.conversation is not None

    async def _exited(self, link: LiveLink) -> None:
        info = await self._manager.get(link.guest, link.process)
        errors = await self._manager.logs(link.guest, link.process, stream="stderr", lines=50)
        async with link.lock:
            step = link.driver.exited(info.exit_code, decode(errors))
            with anyio.CancelScope(shield=True):
                await self._place(link, [*link.decoder.rest(), *map(Entry, step.events)])

    async def _place(self, link: LiveLink, entries: Sequence[Entry]) -> None:
        placed = self.queue.assign([Entry(_with_id(entry.body), entry.raw) for entry in entries])
        if placed:
            await self._journal(link, placed)

    # --- input -------------------------------------------------------------------------------------------------------

    async def _send_prompts(self, link: LiveLink) -> None:
        while True:
            changed = self._changed
            if self.queue.next is not None and link.driver.ready and not link.renewing:
                await self._send_prompt(link)
                continue
            await changed.wait()

    async def _send_prompt(self, link: LiveLink) -> None:
        """Start the turn of the next waiting prompt, and send it."""
        async with link.lock:
            number = self.queue.next
            if number is None or not link.driver.ready or link.renewing:
                return
            try:
                lines = await link.prompt_lines(number)
                text = decode(await anyio.to_thread.run_sync(self.prompts.read, number))
            except StoreUnusable:
                raise
            except HiveyardError as error:
                await self._reject(number, error)
                return
            with anyio.CancelScope(shield=True):
                started = self.queue.start(number)
                said = [link.decoder.entry(body) for body in link.driver.prompt_sent(text)]
                await self._journal(link, [started, *(TurnEntry(number, entry) for entry in said)])
            await link.send(lines)

    async def _reject(self, number: int, error: HiveyardError) -> None:
        with anyio.CancelScope(shield=True):
            end = self.queue.reject(number, as_failure(error))
            await self.resources.event_log.record(self.session, end, turn=number)
        self._notify()

    async def interrupt(self, guest: Guest) -> None:
        if self.queue.running is not None:
            await self._tell(LiveInterrupted(key=f"interrupt-{new_id()}"))

    async def steer(self, text: str, *facts: AnyBody) -> None:
        """Add text to the current turn, as `Steers.steer`."""
        if self.queue.running is None:
            raise BadInput("no turn runs that text could be added to", hint="hv send, without --now")
        if len(text) > TEXT_LIMIT:
            raise BadInput(f"the text has {len(text)} characters; {TEXT_LIMIT} can be added to a turn")
        await self._tell(LiveSteered(key=f"steer-{new_id()}", text=text), *facts)

    async def answer(self, ask: AskRow, answer: Answer) -> None:
        """Answer a question, as `Steers.answer`."""
        said = AskAnswered(
            ask=ask.id, request=ask.request, allow=answer.allow, option=answer.option, message=answer.message
        )
        await self._tell(said)

    async def choose(self, model: str) -> None:
        """Choose the model of later turns, as `Steers.choose`."""
        await self._tell(SessionChanged(model=model, key=f"model-{new_id()}"))
        self.turn = replace(self.turn, model=model)

    async def _tell(self, body: AnyBody, *facts: AnyBody) -> None:
        """Tell the driver, journal that with `facts`, and send the lines. Without a connection, the next one does the
        rest. None is made meanwhile: its driver would read the journal too early."""
        act, turn = act_of(body), self.queue.running
        assert act is not None
        async with self._connecting:
            if (link := self._link) is None:
                await self.resources.event_log.record(self.session, body, *facts, turn=turn)
                return
            async with link.lock:
                step = act(link.driver)
                with anyio.CancelScope(shield=True):
                    told = [TurnEntry(turn, link.decoder.entry(one)) for one in (body, *facts)]
                    await self._journal(link, [*told, *self.queue.assign([Entry(event) for event in step.events])])
                with suppress(GuestDisconnected):  # the next connection sends it
                    await link.send(step.lines)


def _with_id(body: AnyBody) -> AnyBody:
    """Give a question that can be answered an id."""
    if isinstance(body, AgentAsked) and body.request:
        return msgspec.structs.replace(body, ask=new_id())
    return body


def _flood(limit_mib: int) -> AgentFlood:
    return AgentFlood(
        f"the agent wrote more than {limit_mib} MiB of output in one turn and was stopped",
        hint="[engine] output_limit_mib in the settings changes the limit",
    )
