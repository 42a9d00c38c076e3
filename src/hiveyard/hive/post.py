"""Put a message into a mailbox, in a transaction of the journal: the one way in, for all kinds of messages."""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import MessageHeldBack
from hiveyard.core.events import AskOpened, AskOption, MessageHeld, MessageSent
from hiveyard.core.states import MessageState
from hiveyard.hive.names import OPERATOR, SYSTEM
from hiveyard.hive.settings import HiveSettings
from hiveyard.hive.storm import DROP, GO_ON, MAX_HELD, RAISE, excess, open_storm
from hiveyard.kit.names import new_id
from hiveyard.store import hive_views, journal, views
from hiveyard.store.hive_views import MemberKey

_CHOICES = tuple(
    AskOption(id=id, name=name, allow=id != DROP)
    for id, name in (
        (GO_ON, "deliver them, and count anew"),
        (RAISE, "deliver them, and allow twice as many from now on"),
        (DROP, "do not deliver them"),
    )
)


REPEATED = 60.0
"""Seconds in which the same text of a member to the same recipient counts as one message."""


class Posted(NamedTuple):
    """A message in a mailbox, or one that is held because of `held`."""

    message: MessageSent
    held: str = ""


def post(
    conn: Connection, sender: MemberKey, to: MemberKey, message: MessageSent, now: float, settings: HiveSettings
) -> Posted:
    """Journal a message. One that is too much is held, and the operator is asked, once for all that follow. The same
    text of a member again is the same message: its program may have repeated a call whose answer was lost. Raises
    MessageHeldBack if too many are held already."""
    if (earlier := _repeated(conn, message, now)) is not None:
        return earlier
    storms = hive_views.storms_between(conn, sender, to)
    storm = open_storm(storms)
    reason = storm.message if storm else excess(conn, sender, to, storms, message.hops, now, settings)
    if storm is not None and len(hive_views.held_by(conn, storm.id)) >= MAX_HELD:
        raise MessageHeldBack(f"the message to {to.name} was refused: {reason}", hint="wait for the operator")
    journal.record(conn, to.session, message, at=now)
    if reason is None:
        return Posted(message)
    ask = storm.id if storm else _ask_operator(conn, sender, to, reason, now)
    journal.record(conn, to.session, MessageHeld(message=message.message, ask=ask, reason=reason), at=now)
    return Posted(message, reason)


def _repeated(conn: Connection, message: MessageSent, now: float) -> Posted | None:
    if message.sender in (OPERATOR, SYSTEM):
        return None
    row = hive_views.find_repeated(conn, message, now - REPEATED)
    if row is None or row.state is MessageState.DROPPED:
        return None
    held = views.ask(conn, row.held_by).message if row.state is MessageState.HELD else ""
    return Posted(msgspec.structs.replace(message, message=row.id, thread=row.thread), held)


def next_hop(conn: Connection, sender: MemberKey) -> int:
    """Return the hop count of what a member writes now: one more than that of the mail which its turn is about."""
    if sender.name in (OPERATOR, SYSTEM) or not sender.session:
        return 0
    turn = hive_views.last_turn(conn, sender.session)
    return 0 if turn is None else 1 + hive_views.hops_of_turn(conn, sender.session, turn)


def key_of(conn: Connection, name: str) -> MemberKey:
    """Return the key of the operator, of Hiveyard itself, or of a member. Raises NotFound."""
    return MemberKey(name, "") if name in (OPERATOR, SYSTEM) else hive_views.member(conn, name).key


def _ask_operator(conn: Connection, sender: MemberKey, to: MemberKey, reason: str, now: float) -> str:
    ask = new_id()
    opened = AskOpened(ask=ask, kind="storm", asker=sender.name, to=OPERATOR, question=reason, options=_CHOICES)
    journal.record(conn, to.session, opened, at=now)
    return ask
