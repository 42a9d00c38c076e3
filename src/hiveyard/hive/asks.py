"""Questions of members to the operator and to each other, and their answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, MessageHeldBack, NotAllowed, NotFound
from hiveyard.core.events import (
    AskAnswered,
    AskExpired,
    AskOpened,
    AskOption,
    AskWithdrawn,
    MemberWoken,
    MessageDropped,
    MessageKind,
    MessageReleased,
    MessageSent,
)
from hiveyard.core.states import AskState
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.mailbox import BODY_LIMIT, accepting
from hiveyard.hive.names import OPERATOR, SYSTEM
from hiveyard.hive.post import REPEATED, Posted, key_of, next_hop, post
from hiveyard.hive.settings import HiveSettings
from hiveyard.hive.storm import DROP
from hiveyard.kit.names import new_id
from hiveyard.kit.text import one_line, without_nul
from hiveyard.store import hive_views, journal, views
from hiveyard.store.hive_views import MemberKey
from hiveyard.store.views import AskRow

QUESTION, STORM, CRASH = "question", "storm", "crash"
START, LEAVE = "start", "leave"
"""The answers to the question about a member that crashed too often."""
EXPIRED = "(expired: nobody answered in time)"
"""The answer to a question that nobody answered."""
MAX_OPTIONS = 20
LONGEST = 366 * 86400.0


class AskRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A question to the operator, or to a member. `options` are possible answers, of which several may be chosen if it
    is `multi`. After `ttl_seconds` it expires."""

    question: str
    options: list[str] = []
    multi: bool = False
    to: str = OPERATOR
    ttl_seconds: float | None = None


class Asks:
    """The questions that the hive keeps: the first answer counts."""

    def __init__(self, event_log: EventLog, settings: HiveSettings) -> None:
        self._log = event_log
        self._settings = settings

    async def open(self, asker: str, request: AskRequest) -> str:
        """Put a question; return its id once it is journaled. Raises BadInput, NotFound, NotAllowed; MessageHeldBack if
        a member cannot be asked now, because too many messages went to it."""
        _check(request, asker)
        now, ask = self._log.clock.now(), new_id()
        opened = AskOpened(
            ask=ask,
            kind="question",
            asker=asker,
            to=request.to,
            question=request.question,
            options=tuple(AskOption(id=str(n), name=name, allow=True) for n, name in enumerate(request.options, 1)),
            multi=request.multi,
            expires_at=None if request.ttl_seconds is None else now + request.ttl_seconds,
        )

        def write(conn: Connection) -> Posted | None:
            nonlocal ask
            key = key_of(conn, asker)
            if (earlier := _repeated(conn, opened, now)) is not None:
                ask = earlier  # its program repeated a call whose answer was lost
                return None
            to = None if request.to == OPERATOR else accepting(conn, request.to, asker).key
            journal.record(conn, key.session, opened, at=now)
            if to is None:
                return None
            text = "\n".join([request.question, *(f"{one.id}. {one.name}" for one in opened.options)])
            return post(conn, key, to, _message(conn, "question", key, to, text, ask), now, self._settings)

        posted = await self._log.store.write(write)
        if posted is not None and posted.held:
            raise MessageHeldBack(
                f"the question {ask} to {request.to} is held until the operator decides: {posted.held}",
                hint="do not ask again",
            )
        return ask

    async def answer(self, ref: str, by: str, answers: Sequence[str], message: str = "") -> AskRow:
        """Give a question its first answer; return it once that is journaled. Raises NotFound, BadInput for one that is
        over or has no such answer, NotAllowed for one that was not put to `by`."""
        now = self._log.clock.now()

        def write(conn: Connection) -> AskRow:
            ask = views.ask(conn, ref)
            _check_answerer(ask, by)
            if ask.state is not AskState.OPEN:
                raise BadInput(f"the question {ask.id} is over: {end_of(ask)}", hint="hv inbox -a")
            given = _answered(ask, by, answers, message)
            journal.record(conn, ask.session, given, at=now)
            if ask.kind == STORM:
                _settle(conn, ask, given, now)
            elif ask.kind == CRASH:
                _restart(conn, ask, given, now)
            else:
                self._tell_asker(conn, ask, by, answer_text(views.ask(conn, ask.id)), now)
            return views.ask(conn, ask.id)

        return await self._log.store.write(write)

    async def withdraw(self, ref: str, by: str) -> None:
        """End a question of one's own. Raises NotFound, BadInput for one that is over."""
        now = self._log.clock.now()

        def write(conn: Connection) -> None:
            ask = views.ask(conn, ref)
            if ask.asker != by or ask.kind != QUESTION:
                raise NotFound(f"you have no question {one_line(ref, 80)!r}")
            if ask.state is not AskState.OPEN:
                raise BadInput(f"the question {ask.id} is over: {end_of(ask)}")
            journal.record(conn, ask.session, AskWithdrawn(ask=ask.id), at=now)

        await self._log.store.write(write)

    def expire(self, conn: Connection, ask: AskRow, now: float) -> None:
        """End a question that nobody answered in time, and tell its asker."""
        journal.record(conn, ask.session, AskExpired(ask=ask.id), at=now)
        self._tell_asker(conn, ask, SYSTEM, EXPIRED, now)

    def _tell_asker(self, conn: Connection, ask: AskRow, by: str, text: str, now: float) -> None:
        if (asker := hive_views.find_member(conn, ask.asker)) is None or asker.session != ask.session:
            return  # it left
        author = key_of(conn, by)
        post(conn, author, asker.key, _message(conn, "answer", author, asker.key, text, ask.id), now, self._settings)


def _message(conn: Connection, kind: MessageKind, author: MemberKey, to: MemberKey, text: str, ask: str) -> MessageSent:
    hops = next_hop(conn, author)
    return MessageSent(message=new_id(), sender=author.name, to=to.name, text=text, kind=kind, ask=ask, hops=hops)


def _repeated(conn: Connection, opened: AskOpened, now: float) -> str | None:
    """Return the same question of the same asker, put a moment ago and still open."""
    for ask in hive_views.open_asks(conn, kinds=(QUESTION,)):
        same = (ask.asker, ask.target, ask.message) == (opened.asker, opened.to, without_nul(opened.question))
        if same and ask.asked_at > now - REPEATED:
            return ask.id
    return None


def _check(request: AskRequest, asker: str) -> None:
    if not request.question.strip():
        raise BadInput("the question is empty")
    if len(request.question.encode(errors="replace")) > BODY_LIMIT:
        raise BadInput(f"the question has more than {BODY_LIMIT} bytes", hint="write the details into a message")
    if request.to == asker:
        raise BadInput(f"{asker} cannot ask itself")
    if len(request.options) > MAX_OPTIONS or not all(0 < len(option.strip()) <= 1000 for option in request.options):
        raise BadInput(f"a question has at most {MAX_OPTIONS} options, of 1 to 1000 characters")
    if request.ttl_seconds is not None and not 0 < request.ttl_seconds <= LONGEST:
        raise BadInput(f"ttl_seconds is {request.ttl_seconds:g}: it must be more than 0, and at most a year")


def _check_answerer(ask: AskRow, by: str) -> None:
    if by == OPERATOR:
        return
    if ask.asker == by:
        raise NotAllowed(f"{by} asked {ask.id} itself: nobody answers an own question")
    if ask.target != by or ask.kind != QUESTION:
        raise NotAllowed(f"the question {ask.id} was not put to {by}")


def _answered(ask: AskRow, by: str, answers: Sequence[str], message: str) -> AskAnswered:
    """Return the answer as an event. Raises BadInput for one that the question does not take."""
    if (size := sum(len(text.encode(errors="replace")) for text in (*answers, message))) > BODY_LIMIT:
        raise BadInput(f"the answer has {size} bytes; {BODY_LIMIT} are allowed", hint="send the rest as a message")
    if not ask.options:
        text = "\n".join([*answers, *([message] if message else [])])
        if not text.strip():
            raise BadInput("the answer is empty")
        return AskAnswered(ask=ask.id, request="", allow=True, message=text, by=by)
    chosen = [_option(ask, given) for given in answers]
    if len(chosen) != 1 and not (ask.multi and chosen):
        wanted = "one or several" if ask.multi else "one"
        raise BadInput(f"the question {ask.id} takes {wanted} of its options", hint=_offered(ask))
    ids = tuple(dict.fromkeys(option.id for option in chosen))
    allow = all(option.allow for option in chosen)
    several = ids if ask.multi else ()
    return AskAnswered(ask=ask.id, request="", allow=allow, option=ids[0], options=several, message=message, by=by)


def _option(ask: AskRow, given: str) -> AskOption:
    for option in ask.options:
        if given in (option.id, option.name):
            return option
    raise BadInput(f"{one_line(given, 80)!r} is not an answer to {ask.id}", hint=_offered(ask))


def _offered(ask: AskRow) -> str:
    return "one of: " + ", ".join(f"{option.id} ({one_line(option.name, 60)})" for option in ask.options)


def _settle(conn: Connection, ask: AskRow, given: AskAnswered, now: float) -> None:
    """Deliver or drop the messages that a question holds."""
    for message in hive_views.held_by(conn, ask.id):
        id = message.id
        body = MessageDropped(message=id) if given.option == DROP else MessageReleased(message=id)
        journal.record(conn, message.session, body, at=now)


def _restart(conn: Connection, ask: AskRow, given: AskAnswered, now: float) -> None:
    """Wake a member that rests after its crashes, if that is the answer: its loop starts it."""
    member = hive_views.member_of_session(conn, ask.session)
    if member is not None and given.option == START:
        journal.record(conn, ask.session, MemberWoken(name=member.name, by=OPERATOR), at=now)


def answer_text(ask: AskRow) -> str:
    """Return the answer to a question as text."""
    answer: dict[str, Any] = ask.answer or {}
    ids = answer.get("options") or ([answer["option"]] if answer.get("option") else [])
    chosen = [option.name for option in ask.options if option.id in ids]
    return "\n".join([*chosen, *([answer["message"]] if answer.get("message") else [])])


def end_of(ask: AskRow) -> str:
    """Return how a question ended."""
    if ask.state is AskState.ANSWERED:
        return f"{ask.answered_by or OPERATOR} answered it: {one_line(answer_text(ask), 200)}"
    return {AskState.EXPIRED: "it expired", AskState.WITHDRAWN: "its asker withdrew it"}.get(ask.state, ask.state)
