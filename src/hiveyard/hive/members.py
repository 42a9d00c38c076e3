"""Members of the hive: add, list, wake, stop and remove them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, MachineNotReady
from hiveyard.core.events import AnyBody, MemberJoined, MemberLeft, MemberStopped, MemberWoken, Role
from hiveyard.core.states import AT_WORK, MessageState, Phase
from hiveyard.engine.engine import Engine
from hiveyard.engine.event_log import Listing
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.sessions.steering import AskAnswer, AskView
from hiveyard.engine.sessions.view import SessionView, session_views
from hiveyard.hive.equipment import equipped
from hiveyard.hive.hive import ASLEEP, Hive, is_napping, state_of
from hiveyard.hive.mailbox import MessageRequest, Sent
from hiveyard.hive.names import OPERATOR, check_member_name
from hiveyard.repository.empty import empty_repository
from hiveyard.store import hive_views, views
from hiveyard.store.ask_projections import PERMISSION
from hiveyard.store.hive_views import MemberRow, MessageRow
from hiveyard.store.views import SessionRow

_OWN = ("role", "accepts", "terminal")


class MemberRequest(SpawnRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a member: that for its session, with its role. `name` is required. Without a `repo` it works in an
    empty repository. It runs live unless `terminal` is set. `accepts` are the members that may write to it; null means
    all. Its prompt becomes its first message."""

    repo: str = ""
    role: Role = "member"
    accepts: list[str] | None = None
    terminal: bool = False

    def for_session(self, empty: Path) -> SpawnRequest:
        """Return the request for the session; `empty` is the empty repository. The mailbox starts its turns, so it has
        no prompt."""
        fields: dict[str, Any] = dict(msgspec.structs.asdict(self))
        for name in _OWN:
            del fields[name]
        return SpawnRequest(
            **fields | {"repo": self.repo or str(empty), "live": not self.terminal, "prompt": None, "wait": True}
        )


class MemberView(msgspec.Struct, frozen=True, kw_only=True):
    """A member. `state` is `working`, `idle`, `napping`, `asleep`, `starting` or `stopped`. `waiting` and `held` count
    messages for it, `asks` its questions without an answer."""

    name: str
    role: Role
    state: str
    note: str
    accepts: list[str] | None
    nap_until: float | None
    waiting: int
    held: int
    asks: int
    reminders: int
    joined_at: float
    session: SessionView


class MessageView(msgspec.Struct, frozen=True, kw_only=True):
    """A message. `sender` wrote it to `to`. `state` is `pending`, `held`, `delivered`, `read` or `dropped`."""

    id: str
    sender: str
    to: str
    text: str
    kind: str
    state: MessageState
    thread: str
    reply_to: str
    hops: int
    urgent: bool
    files: list[str]
    ask: str
    turn: int | None
    sent_at: float
    ended_at: float | None


class ReminderView(msgspec.Struct, frozen=True, kw_only=True):
    """A reminder of a member, due at `due_at`, and then again after each `every` seconds."""

    id: str
    text: str
    due_at: float
    every: float | None


class Members:
    """The interface of the hive for the API: what acts on the sessions of members, and what the operator reads."""

    def __init__(self, hive: Hive, engine: Engine, resources: Resources) -> None:
        self.hive = hive
        self._engine = engine
        self._r = resources
        self._log = resources.event_log

    async def add(self, request: MemberRequest) -> MemberView:
        """Create a member; return it once it is journaled and its session starts. Raises as `Sessions.spawn`."""
        if request.name is None:
            raise BadInput("a member needs a name", hint="hv hive add NAME")
        check_member_name(request.name)
        empty = self.hive.empty if request.repo else await empty_repository(self.hive.empty)
        spawn = equipped(request.for_session(empty), request.name, request.role, self.hive.settings)
        accepts = None if request.accepts is None else tuple(request.accepts)
        facts: list[AnyBody] = [MemberJoined(name=request.name, role=request.role, accepts=accepts)]
        if request.prompt is not None:
            first = await self.hive.mailbox.draft(OPERATOR, MessageRequest(to=[request.name], text=request.prompt))
            facts.append(msgspec.structs.replace(first, to=request.name))
        await self._engine.sessions.spawn(spawn, *facts)
        return await self.view(request.name)

    async def remove(self, name: str, *, force: bool) -> str:
        """Remove a member with its session; return the session's id. Raises MachineNotReady while it runs, unless
        `force`."""
        member = await self._row(name)
        session = await self._log.read(lambda conn: views.session(conn, member.session))
        if session.phase in AT_WORK and not force:
            raise MachineNotReady(
                f"{name} is {session.phase}", hint=f"hv hive stop {name}, or hv hive rm --force {name}"
            )
        await self._log.record(member.session, MemberLeft(name=name))
        await self._engine.remove(member.session, force=True)
        return member.session

    async def wake(self, name: str, by: str = OPERATOR) -> None:
        """End a member's sleep or nap. Raises BadInput for one that is stopped."""
        member = await self._row(name)
        session = await self._log.read(lambda conn: views.session(conn, member.session))
        if member.stopped or (session.phase not in AT_WORK and session.reason != ASLEEP):
            raise BadInput(f"{name} is stopped", hint=f"hv hive start {name}")
        if session.phase is Phase.STOPPED:
            await self._engine.sessions.resume(member.session, wait=True)
        elif not is_napping(member, self._log.clock.now()):
            return
        await self._log.record(member.session, MemberWoken(name=name, by=by))

    async def nap(self, name: str, seconds: float) -> None:
        await self.hive.nap(await self._row(name), seconds)

    async def stop(self, name: str, by: str = "") -> None:
        """Stop a member: it keeps its files, and its mail waits until it is started. `by` is the manager that does."""
        member = await self._row(name)
        await self._log.record(member.session, MemberStopped(name=name, by=by))
        await self._engine.sessions.stop(member.session)

    async def start(self, name: str, by: str = OPERATOR) -> None:
        """Start a member that is stopped or asleep."""
        member = await self._row(name)
        await self._engine.sessions.resume(member.session, wait=True)
        await self._log.record(member.session, MemberWoken(name=name, by=by))

    async def answer(self, ref: str, given: AskAnswer) -> AskView:
        """Answer a question as the operator, who may answer each. Raises as `Steering.answer` and `Asks.answer`."""
        ask = await self._engine.steering.ask(ref)
        if ask.kind == PERMISSION:
            return await self._engine.steering.answer(ask.id, given)
        await self.hive.asks.answer(ask.id, OPERATOR, [given.answer, *given.more], given.message)
        return await self._engine.steering.ask(ask.id)

    async def view(self, name: str) -> MemberView:
        now, line = self._log.clock.now(), self._r.admission.waiting()
        return await self._log.read(lambda conn: _views(conn, [hive_views.member(conn, name)], now, line)[0])

    async def views(self, sessions: Collection[str] | None = None) -> Listing[MemberView]:
        """Return all members, or those of some sessions, in the order in which they joined."""
        now, line = self._log.clock.now(), self._r.admission.waiting()

        def read(conn: Connection) -> list[MemberView]:
            rows = hive_views.members(conn)
            return _views(conn, [row for row in rows if sessions is None or row.session in sessions], now, line)

        return await self._log.read_list(read)

    async def member_of(self, session: str) -> MemberRow | None:
        """Return the member whose session it is."""
        return await self._log.read(lambda conn: hive_views.member_of_session(conn, session))

    async def write(self, name: str, text: str, *, urgent: bool = False) -> Sent:
        """Send a message of the operator to a member. Raises as `Mailbox.send`."""
        request = MessageRequest(to=[name], text=text, priority="urgent" if urgent else "normal")
        return (await self.hive.mailbox.send(OPERATOR, request))[0]

    async def reminders(self, name: str) -> Listing[ReminderView]:
        """Return the reminders of a member, the next one first. Raises NotFound."""

        def read(conn: Connection) -> list[ReminderView]:
            rows = hive_views.reminders(conn, hive_views.member(conn, name).session)
            return [ReminderView(id=row.id, text=row.text, due_at=row.due_at, every=row.every) for row in rows]

        return await self._log.read_list(read)

    async def cancel_reminder(self, name: str, ref: str) -> None:
        """Cancel a reminder of a member. Raises NotFound."""
        await self.hive.reminders.cancel((await self._row(name)).session, ref)

    async def mail(self, name: str, *, limit: int) -> Listing[MessageView]:
        """Return the latest messages from and for a member or the operator, oldest first. Raises NotFound."""

        def read(conn: Connection) -> list[MessageView]:
            if name != OPERATOR:
                hive_views.member(conn, name)
            return [message_view(row) for row in hive_views.history(conn, name, limit=limit)]

        return await self._log.read_list(read)

    async def unread(self) -> Listing[MessageView]:
        """Return the mail that the operator has not read."""
        return await self._log.read_list(lambda conn: [message_view(row) for row in hive_views.mailbox(conn, "")])

    async def _row(self, name: str) -> MemberRow:
        return await self._log.read(lambda conn: hive_views.member(conn, name))


def message_view(row: MessageRow) -> MessageView:
    """Return a message for people and programs."""
    return MessageView(
        id=row.id,
        sender=row.sender,
        to=row.recipient,
        text=row.text,
        kind=row.kind,
        state=row.state,
        thread=row.thread,
        reply_to=row.reply_to,
        hops=row.hops,
        urgent=row.urgent,
        files=list(row.files),
        ask=row.ask,
        turn=row.turn,
        sent_at=row.sent_at,
        ended_at=row.ended_at,
    )


class _Counts(NamedTuple):
    """How much there is for each member: of messages and reminders by its session, of questions by its name."""

    waiting: Mapping[str, int]
    held: Mapping[str, int]
    asks: Mapping[str, int]
    reminders: Mapping[str, int]

    @classmethod
    def of(cls, conn: Connection) -> _Counts:
        return cls(
            waiting=hive_views.count_messages(conn, MessageState.PENDING),
            held=hive_views.count_messages(conn, MessageState.HELD),
            asks=Counter(ask.asker for ask in views.asks(conn)),
            reminders=Counter(row.session for row in hive_views.reminders(conn)),
        )


def _views(conn: Connection, rows: Sequence[MemberRow], now: float, line: Mapping[str, str]) -> list[MemberView]:
    if not rows:
        return []
    counts, ids = _Counts.of(conn), [row.session for row in rows]
    sessions = {row.id: row for row in views.sessions(conn, ids=ids)}
    seen = {one.id: one for one in session_views(conn, line, over=True, tasks=True, ids=ids)}
    return [_view(row, sessions[row.session], seen[row.session], counts, now) for row in rows]


def _view(row: MemberRow, session: SessionRow, seen: SessionView, counts: _Counts, now: float) -> MemberView:
    return MemberView(
        name=row.name,
        role="manager" if row.role == "manager" else "member",
        state=state_of(row, session, now),
        note=row.note,
        accepts=None if row.accepts is None else list(row.accepts),
        nap_until=row.nap_until if is_napping(row, now) else None,
        waiting=counts.waiting.get(row.session, 0),
        held=counts.held.get(row.session, 0),
        asks=counts.asks.get(row.name, 0),
        reminders=counts.reminders.get(row.session, 0),
        joined_at=row.joined_at,
        session=seen,
    )
