"""The hive as its members see it: it records facts, and needs no running engine. The wake loop acts on the facts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path, PurePosixPath
from typing import Protocol

import anyio
import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, NotAllowed, SessionNotRunning
from hiveyard.core.events import MemberNapping, MemberNoted
from hiveyard.core.ports import Guest
from hiveyard.core.states import AT_WORK, AskState, MessageState, Phase
from hiveyard.engine.resources import Resources
from hiveyard.hive.asks import QUESTION, Asks
from hiveyard.hive.bells import Bells
from hiveyard.hive.frame import LooseEnds
from hiveyard.hive.mail_files import MailFiles
from hiveyard.hive.mailbox import SIZE_LIMIT, Mailbox
from hiveyard.hive.names import OPERATOR
from hiveyard.hive.reminders import Reminders
from hiveyard.hive.settings import HiveSettings
from hiveyard.kit.text import one_line
from hiveyard.store import hive_views, views
from hiveyard.store.hive_views import MemberRow, MessageRow, ReminderRow
from hiveyard.store.views import AskRow, SessionRow

MANAGER = "manager"
ASLEEP = "asleep"
"""The reason of a stopped session whose member sleeps."""
LONGEST_NAP = 7 * 86400.0
LONGEST_WAIT = 50.0
"""Seconds that `recv` waits at most: most programs end a call of a tool after a minute."""
LONGER_WAITS = {"claude": 170.0}
"""The same for programs that wait longer."""
NOTE_LIMIT = 500
MAX_FILES = 20


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """A member as the others see it. `state` is `working`, `idle`, `napping`, `asleep`, `starting` or `stopped`."""

    name: str
    role: str
    state: str
    note: str
    accepts_you: bool


class Threads(msgspec.Struct, frozen=True, kw_only=True):
    """The open business of a member: unanswered questions, undelivered messages, and reminders."""

    asked: list[AskRow]
    to_answer: list[AskRow]
    waiting: int
    reminders: list[ReminderRow]


class Control(Protocol):
    """The power over other members that a manager has. `by` is the manager. Each call raises NotFound, NotAllowed for
    what only the operator may do, and the errors of the session."""

    async def last_lines(self, name: str, count: int) -> list[str]: ...
    async def wake(self, name: str, by: str) -> None: ...
    async def start(self, name: str, by: str) -> None: ...
    async def stop(self, name: str, by: str) -> None: ...
    async def restart(self, name: str, by: str) -> None: ...


class Hive:
    """The parts of the hive. `bells` ring when a member's mailbox or session changes. `empty` is where the repository
    of members without one is made. `guest` reaches into the machine of a session, and `control` acts on members, once
    the engine runs."""

    def __init__(self, resources: Resources, settings: HiveSettings, directory: Path) -> None:
        self.settings = settings
        self.bells = Bells()
        self.files = MailFiles(directory / "mail")
        self.empty = directory / "empty"
        self.guest: Callable[[str], AbstractAsyncContextManager[Guest]] = _no_guest
        self.control: Control | None = None
        self._log = resources.event_log
        self.mailbox = Mailbox(self._log, self.files, settings)
        self.asks = Asks(self._log, settings)
        self.reminders = Reminders(self._log, settings)

    async def caller(self, session: str) -> MemberRow:
        """Return the member whose session it is. Raises NotAllowed for a session that is none."""
        if (row := await self._log.read(lambda conn: hive_views.member_of_session(conn, session))) is None:
            raise NotAllowed("this session is no member of the hive", hint="hv hive add NAME makes a member")
        return row

    async def manages(self, session: str) -> bool:
        """Return whether a session is that of a manager."""
        row = await self._log.read(lambda conn: hive_views.member_of_session(conn, session))
        return row is not None and row.role == MANAGER

    async def receive(self, caller: MemberRow, wait_seconds: float) -> list[MessageRow]:
        """Return the messages that wait for a member, or the first that come within `wait_seconds` and in the same
        turn: a call that is left over from an interrupted turn takes none."""
        agent = await self._log.read(lambda conn: views.session(conn, caller.session).agent)
        turn = await self._running_turn(caller)
        with anyio.move_on_after(max(0.0, min(wait_seconds, LONGER_WAITS.get(agent, LONGEST_WAIT)))):
            while not await self._receivable(caller, turn):
                pass
        return await self.mailbox.receive(caller.session, turn)

    async def _receivable(self, caller: MemberRow, turn: int | None) -> bool:
        """Return whether there is no reason to wait; else wait for the next change."""
        with self.bells.listening(caller.session) as bell:
            if await self.mailbox.waiting(caller.session) or await self._running_turn(caller) != turn:
                return True
            await bell.wait()
        return False

    async def _running_turn(self, caller: MemberRow) -> int | None:
        return await self._log.read(lambda conn: hive_views.running_turn(conn, caller.session))

    async def read_files(self, caller: MemberRow, paths: Sequence[str]) -> dict[str, bytes]:
        """Return files of a member's machine, by their names. Raises BadInput, GuestFileError, SessionNotRunning."""
        found: dict[str, bytes] = {}
        if not paths:
            return found
        async with self.guest(caller.session) as guest:
            for path in paths[:MAX_FILES]:
                left = SIZE_LIMIT - sum(map(len, found.values()))
                found[PurePosixPath(path).name] = await guest.read(path, limit=left)
        if len(found) < len(paths):
            raise BadInput(f"a message has at most {MAX_FILES} files, each with a name of its own")
        return found

    async def peers(self, caller: MemberRow) -> list[Peer]:
        """Return the other members."""
        now = self._log.clock.now()

        def read(conn: Connection) -> list[Peer]:
            return [
                _peer(row, caller, state_of(row, views.session(conn, row.session), now))
                for row in hive_views.members(conn)
                if row.name != caller.name
            ]

        return await self._log.read(read)

    async def nap(self, caller: MemberRow, seconds: float) -> float:
        """Let a member take no messages for so many seconds, but the operator's; return when it ends."""
        if not 0 < seconds <= LONGEST_NAP:
            raise BadInput(f"seconds is {seconds:g}: it must be more than 0, and at most {LONGEST_NAP:g}")
        until = self._log.clock.now() + seconds
        await self._log.record(caller.session, MemberNapping(name=caller.name, until=until))
        return until

    async def note(self, caller: MemberRow, text: str) -> None:
        """Set what a member says that it works on."""
        await self._log.record(caller.session, MemberNoted(name=caller.name, note=one_line(text, NOTE_LIMIT)))

    async def open_threads(self, caller: MemberRow) -> Threads:
        """Return what is open for a member; for the manager, in the whole hive."""
        return await self._log.read(lambda conn: _threads(conn, caller))


def _no_guest(session: str) -> AbstractAsyncContextManager[Guest]:
    raise SessionNotRunning("the daemon has not reached its machine yet", hint="try again in a moment")


def loose_ends(conn: Connection, member: MemberRow) -> LooseEnds:
    """Return how much is open for a member."""
    asks = hive_views.open_asks(conn, kinds=(QUESTION,))
    return LooseEnds(
        asked=sum(ask.asker == member.name for ask in asks),
        to_answer=sum(ask.target == member.name for ask in asks),
        reminders=len(hive_views.reminders(conn, member.session)),
    )


def state_of(member: MemberRow, session: SessionRow, now: float) -> str:
    """Return what a member does, in one word."""
    if session.phase is Phase.STOPPED and session.reason == ASLEEP and not member.stopped:
        return "napping" if is_napping(member, now) else ASLEEP
    if session.phase not in AT_WORK:
        return "stopped"
    if session.phase is not Phase.RUNNING:
        return "starting"
    if session.activity != "idle":
        return "working"
    return "napping" if is_napping(member, now) else "idle"


def is_napping(member: MemberRow, now: float) -> bool:
    return member.nap_until is not None and member.nap_until > now


def _peer(row: MemberRow, caller: MemberRow, state: str) -> Peer:
    accepts = row.accepts is None or caller.name in row.accepts
    return Peer(name=row.name, role=row.role, state=state, note=row.note, accepts_you=accepts)


def _threads(conn: Connection, caller: MemberRow) -> Threads:
    asks = [ask for ask in views.asks(conn) if ask.state is AskState.OPEN]
    all_of_them = caller.role == MANAGER
    return Threads(
        asked=[ask for ask in asks if (ask.asker or OPERATOR) == caller.name or all_of_them],
        to_answer=[ask for ask in asks if ask.target == caller.name],
        waiting=_count_all(conn) if all_of_them else hive_views.count_waiting(conn, caller.session),
        reminders=hive_views.reminders(conn, None if all_of_them else caller.session),
    )


def _count_all(conn: Connection) -> int:
    return sum(hive_views.count_messages(conn, MessageState.PENDING).values())
