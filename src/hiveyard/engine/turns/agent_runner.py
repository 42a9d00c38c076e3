"""Hold an agent in a session: what the ways to do it have in common.

An agent is held at its own terminal (terminal_runner.py), by a protocol in a process that stays (live_runner.py), or in
a process for one prompt, as that of a task (one_shot_runner.py)."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import anyio
import msgspec

from hiveyard.core.commands import ProcessInfo
from hiveyard.core.drivers import Answer
from hiveyard.core.events import AnyBody
from hiveyard.core.ports import Guest, Turn
from hiveyard.engine.resources import Resources
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.turns.turn_queue import TurnEntry, TurnQueue
from hiveyard.store import lineage
from hiveyard.store.views import AskRow

GRACE = 10.0
"""Seconds for the program to save its conversation."""


@dataclass(kw_only=True)
class AgentRunner(abc.ABC):
    """The agent of one session. `turn` is the adapter's data, without a prompt. `on_turn_over` is called after the end
    of a turn is journaled, and once at the start if the last turn has ended; it must return at once."""

    session: str
    turn: Turn
    queue: TurnQueue
    prompts: Prompts
    resources: Resources
    on_turn_over: Callable[[], None] = lambda: None
    _changed: anyio.Event = field(default_factory=anyio.Event)
    _adding: anyio.Lock = field(default_factory=anyio.Lock)
    _has_repeated: bool = False

    @abc.abstractmethod
    async def begin(self, guest: Guest, *, fresh: bool) -> ProcessInfo:
        """Start the program, unless it runs. `fresh`: the machine is new, so stored process data belong to another one.
        Raises ProcessNotStarted."""

    def begun(self, info: ProcessInfo) -> Sequence[TurnEntry]:
        """Return the events of a program that was started, which are journaled together with that."""
        return ()

    @abc.abstractmethod
    async def follow(self, guest: Guest, info: ProcessInfo) -> None:
        """Journal the agent's activity and send waiting prompts until the program has ended."""

    @abc.abstractmethod
    async def end(self, guest: Guest, *, grace: float = GRACE) -> ProcessInfo:
        """Ask the program to end; kill it after `grace` seconds."""

    @abc.abstractmethod
    async def interrupt(self, guest: Guest) -> None:
        """End the current turn and keep the program; succeeds if no turn runs. Raises AgentFailed if that fails."""

    async def read_rest(self, guest: Guest) -> None:
        """Journal the output that is not in the journal yet, in a machine that was made after the agent's was lost.
        By default, the next program does that."""
        return

    async def add(self, text: str, *facts: AnyBody, woken_by: Sequence[str] = ()) -> int:
        """Add a prompt for the next turn; return the turn's number once it is journaled, together with `facts` of that
        turn: all or none. Raises IllegalMove if one of them cannot happen; then there is no such turn."""
        async with self._adding:
            return await self._add(text, facts, tuple(woken_by))

    async def _add(self, text: str, facts: Sequence[AnyBody], woken_by: tuple[str, ...]) -> int:
        # Stored before the turn waits, because then it may be sent at once. A prompt typed meanwhile takes the number.
        number = 0
        while number != self.queue.last + 1:
            number = self.queue.last + 1
            await self.prompts.keep(number, text)
        number, created = self.queue.add(self.turn.model or "")
        created = msgspec.structs.replace(created, woken_by=woken_by)
        # Shielded, and withdrawn on an error: the queue must match the journal, or a prompt is sent unasked.
        with anyio.CancelScope(shield=True):
            try:
                await self.resources.event_log.record(self.session, created, *facts, turn=number)
            except BaseException:
                self.queue.withdraw(number)
                raise
        self._notify()
        return number

    async def _repeat_turn_over(self) -> None:
        """Call `on_turn_over` once for the last turn: a killed daemon may have missed it."""
        first, self._has_repeated = not self._has_repeated, True
        if first and await self.resources.event_log.read(lambda conn: lineage.is_at_turn_end(conn, self.session)):
            self.on_turn_over()

    def _notify(self) -> None:
        """Wake those who wait for a change of the turns."""
        self._changed.set()
        self._changed = anyio.Event()


@runtime_checkable
class Steers(Protocol):
    """An agent that takes more than prompts while it works: text for the current turn, answers, another model."""

    async def steer(self, text: str, *facts: AnyBody) -> None:
        """Add text to the current turn, and journal `facts` with it: all or none. Raises BadInput if no turn runs, or
        if the program does not take it; IllegalMove if one of the facts cannot happen."""

    async def answer(self, ask: AskRow, answer: Answer) -> None:
        """Answer a question of the agent once the answer is journaled. Raises BadInput, and IllegalMove for a question
        that is not open."""

    async def choose(self, model: str) -> None:
        """Choose the model of later turns. Raises BadInput if the program cannot change it."""
