"""Send messages, and give members those that wait for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, MessageHeldBack, NotAllowed, NotFound
from hiveyard.core.events import MessageDelivered, MessageRead, MessageSent
from hiveyard.core.states import MessageState
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.frame import first_messages
from hiveyard.hive.mail_files import GUEST_MAIL, MailFiles
from hiveyard.hive.names import ALL, OPERATOR, SYSTEM
from hiveyard.hive.post import Posted, key_of, next_hop, post
from hiveyard.hive.settings import HiveSettings
from hiveyard.kit.names import new_id
from hiveyard.kit.text import one_line
from hiveyard.store import hive_views, journal
from hiveyard.store.hive_views import MemberKey, MemberRow, MessageRow

BODY_LIMIT = 64 << 10
"""Bytes of a text in a message. A longer one is a file of the message, with its beginning as the text."""
SIZE_LIMIT = 50 << 20
"""Bytes of a message with its files."""
_BEGINNING = 2000
TEXT_FILE = "message.txt"
MAX_RECIPIENTS = 100


class MessageRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message to members, to `all` of them, or to the `operator`. `reply_to` is the id of a message that it answers.
    An urgent message does not wait until the turn ends. `files` are their names with their content in base64."""

    to: list[str]
    text: str
    reply_to: str = ""
    priority: Literal["normal", "urgent"] = "normal"
    files: dict[str, bytes] = {}


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """A message that was sent: its id, its recipient and its thread. `held` is why it waits for the operator."""

    id: str
    to: str
    thread: str
    held: str = ""


class _Reply(NamedTuple):
    thread: str
    hops: int


class Mailbox:
    """The mailboxes of all members and of the operator."""

    def __init__(self, event_log: EventLog, files: MailFiles, settings: HiveSettings) -> None:
        self._log = event_log
        self._files = files
        self._settings = settings

    async def send(self, sender: str, request: MessageRequest) -> list[Sent]:
        """Send a message to each recipient; return once it is journaled. Raises BadInput, NotFound, NotAllowed, and
        MessageHeldBack if a message waits for the operator now: it is stored, and need not be sent again."""
        draft, now = await self.draft(sender, request), self._log.clock.now()

        def write(conn: Connection) -> list[Posted]:
            key = key_of(conn, sender)
            reply = _reply(conn, sender, request.reply_to)
            hops = max(next_hop(conn, key), reply.hops if reply else 0)
            found = _recipients(conn, sender, request.to)
            drafts = [_addressed(draft, to, reply, hops, first=number == 0) for number, to in enumerate(found)]
            return [post(conn, key, to, one, now, self._settings) for to, one in zip(found, drafts, strict=True)]

        posted = await self._log.store.write(write)
        if held := [one for one in posted if one.held]:
            raise _held(held)
        return [_sent(one) for one in posted]

    async def draft(self, sender: str, request: MessageRequest) -> MessageSent:
        """Return a message that is not journaled yet, once its files are stored. Raises BadInput."""
        _check(request, sender)
        id = new_id()
        text, files = await self._stored(id, request)
        urgent = request.priority == "urgent"
        return MessageSent(
            message=id, sender=sender, to="", text=text, reply_to=request.reply_to, urgent=urgent, files=files
        )

    async def _stored(self, batch: str, request: MessageRequest) -> tuple[str, tuple[str, ...]]:
        """Store what is too long for the journal; return the text and the files of the message."""
        files: dict[str, bytes] = dict(request.files)
        data = request.text.encode()
        if len(data) <= BODY_LIMIT:
            return request.text, await self._files.keep(batch, files)
        kept = await self._files.keep(batch, {TEXT_FILE: data, **files})
        pointer = f"[the beginning of {len(data)} bytes; all of it is in {GUEST_MAIL}/{kept[0]}]"
        return f"{request.text[:_BEGINNING]}\n{pointer}", kept

    async def waiting(self, session: str) -> list[MessageRow]:
        """Return the messages that wait for a member: urgent ones first."""
        return await self._log.read(lambda conn: hive_views.mailbox(conn, session))

    async def receive(self, session: str, turn: int | None) -> list[MessageRow]:
        """Mark the first messages that wait for a member as delivered to the turn that asks for them; return them. A
        turn that does not run any more gets none."""
        now = self._log.clock.now()

        def write(conn: Connection) -> list[MessageRow]:
            if hive_views.running_turn(conn, session) != turn:
                return []
            taken = first_messages(hive_views.mailbox(conn, session))
            for message in taken:
                delivered = MessageDelivered(message=message.id, by="recv")
                journal.record(conn, session, delivered, at=now, turn=turn)
            return taken

        return await self._log.store.write(write)

    async def mark_read(self, ids: Sequence[str]) -> None:
        """Mark mail for the operator as read; mail that is read stays so."""
        now = self._log.clock.now()

        def write(conn: Connection) -> None:
            for id in ids:
                message = hive_views.message(conn, id)
                if message.recipient == OPERATOR and message.state is MessageState.PENDING:
                    journal.record(conn, "", MessageRead(message=message.id), at=now)

        await self._log.store.write(write)


def _check(request: MessageRequest, sender: str) -> None:
    if not request.to:
        raise BadInput("the message has no recipient", hint=f"a member, {ALL}, or {OPERATOR}")
    if len(request.to) > MAX_RECIPIENTS:
        raise BadInput(
            f"the message has {len(request.to)} recipients; {MAX_RECIPIENTS} are allowed", hint=f"--to {ALL}"
        )
    if sender in request.to:
        raise BadInput(f"{sender} cannot write to itself", hint="a reminder does that")
    if not request.text.strip():
        raise BadInput("the message is empty")
    try:
        size = len(request.text.encode()) + sum(map(len, request.files.values()))
    except UnicodeEncodeError as error:
        raise BadInput(f"the message is not Unicode text: character {error.start}") from None
    if size > SIZE_LIMIT:
        raise BadInput(f"the message has {size} bytes with its files; {SIZE_LIMIT} are allowed", hint="hv cp")


def _recipients(conn: Connection, sender: str, names: Sequence[str]) -> list[MemberKey]:
    """Return the recipients, each once. Raises NotFound, NotAllowed; BadInput if there is none."""
    found: dict[str, MemberKey] = {}
    for name in names:
        if name == ALL:
            members = [row for row in hive_views.members(conn) if row.name != sender and _accepts(row, sender)]
            found |= {row.name: row.key for row in members}
        elif name == OPERATOR:
            found[name] = MemberKey(OPERATOR, "")
        else:
            found[name] = accepting(conn, name, sender).key
    if not found:
        raise BadInput("the hive has no other member yet", hint="hv hive add NAME")
    return list(found.values())


def accepting(conn: Connection, name: str, sender: str) -> MemberRow:
    """Return a member to which `sender` may write. Raises NotFound, NotAllowed."""
    row = hive_views.member(conn, name)
    if not _accepts(row, sender):
        raise NotAllowed(f"{name} takes no messages of {sender}", hint="ask the operator to change that")
    return row


def _accepts(row: MemberRow, sender: str) -> bool:
    return row.accepts is None or sender in (OPERATOR, SYSTEM, *row.accepts)


def _reply(conn: Connection, sender: str, ref: str) -> _Reply | None:
    """Return what a reply inherits. Raises NotFound for a message that the sender has neither written nor got."""
    if not ref:
        return None
    message = hive_views.message(conn, ref)
    if sender not in (message.sender, message.recipient):
        raise NotFound(f"there is no message {one_line(ref, 80)!r}")
    return _Reply(message.thread, 0 if sender == OPERATOR else message.hops + 1)


def _addressed(draft: MessageSent, to: MemberKey, reply: _Reply | None, hops: int, *, first: bool) -> MessageSent:
    id = draft.message if first else new_id()
    thread = reply.thread if reply else draft.message
    return msgspec.structs.replace(draft, message=id, to=to.name, thread=thread if thread != id else "", hops=hops)


def _sent(posted: Posted) -> Sent:
    message = posted.message
    return Sent(id=message.message, to=message.to, thread=message.thread or message.message, held=posted.held)


def _held(held: Sequence[Posted]) -> MessageHeldBack:
    names = ", ".join(one.message.to for one in held)
    return MessageHeldBack(
        f"the message to {names} is held until the operator decides: {held[0].held}",
        hint="do not send it again; hv inbox shows it",
    )


def as_facts(messages: Sequence[MessageRow], by: Literal["turn", "steer"]) -> list[MessageDelivered]:
    """Return the events that mark messages as delivered."""
    return [MessageDelivered(message=message.id, by=by) for message in messages]


def unique_kinds(messages: Sequence[MessageRow]) -> list[str]:
    """Return the kinds of messages, each once."""
    return list(dict.fromkeys(message.kind for message in messages))
