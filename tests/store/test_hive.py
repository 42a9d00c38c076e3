"""Rows of the hive follow from its events, each change once."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from hiveyard.core import events as e
from hiveyard.core.errors import Ambiguous, IllegalMove, NotFound
from hiveyard.core.states import AskState, MessageState
from hiveyard.store import hive_views, journal, views
from hiveyard.store.database import Store

pytestmark = pytest.mark.anyio
OPTIONS = (e.AskOption(id="1", name="red", allow=True), e.AskOption(id="2", name="blue", allow=True))


async def joined(store: Store, session: str = "s1", name: str = "ada", **more: object) -> None:
    created = e.SessionCreated(slug=name, repo="/r", agent="claude", request={"repo": "/r"})
    await store.append(session, created, e.MemberJoined(name=name, **more))  # type: ignore[arg-type]


def sent(id: str = "m1", **more: object) -> e.MessageSent:
    values: dict[str, object] = {"message": id, "sender": "operator", "to": "ada", "text": "hello\0", **more}
    return e.MessageSent(**values)  # type: ignore[arg-type]


async def mailbox(store: Store, session: str = "s1", *states: MessageState) -> list[hive_views.MessageRow]:
    wanted = states or (MessageState.PENDING,)
    return await store.read(lambda conn: hive_views.mailbox(conn, session, states=wanted))


async def test_a_member_joins_naps_and_leaves(store: Store) -> None:
    await joined(store, role="manager", accepts=("bob",))
    await store.append("s1", e.MemberNapping(name="ada", until=5.0), e.MemberNoted(name="ada", note="tests"))
    [row] = await store.read(hive_views.members)
    assert (row.name, row.session, row.role, row.accepts) == ("ada", "s1", "manager", ("bob",))
    assert (row.nap_until, row.note) == (5.0, "tests")
    with pytest.raises(IllegalMove, match="there is already a member ada"):
        await joined(store, "s2")
    await store.append("s1", e.MemberAsleep(name="ada"), e.MemberWoken(name="ada", by="operator"))
    assert (await store.read(lambda conn: hive_views.member(conn, "ada"))).nap_until is None
    await store.append("s1", e.MemberLeft(name="ada"))
    assert await store.read(lambda conn: hive_views.member_of_session(conn, "s1")) is None
    for late in (e.MemberLeft(name="ada"), e.MemberNapping(name="ada", until=1.0), sent()):
        with pytest.raises(IllegalMove, match="no member of the hive"):
            await store.append("s1", late)
    with pytest.raises(NotFound, match="the hive has no member 'ada'"):
        await store.read(lambda conn: hive_views.member(conn, "ada"))


async def test_a_message_is_delivered_once(store: Store) -> None:
    await joined(store)
    await store.append("s1", sent("m1"), sent("m2", urgent=True, thread="m0", reply_to="m0", hops=3, files=("a",)))
    urgent, plain = await mailbox(store)
    assert (urgent.id, urgent.thread, urgent.hops, urgent.files) == ("m2", "m0", 3, ("a",))
    assert (plain.id, plain.thread, plain.text, plain.turn) == ("m1", "m1", "hello\ufffd", None)
    await store.append("s1", e.TurnCreated(agent="x"), e.MessageDelivered(message="m1"), turn=4)
    with pytest.raises(IllegalMove, match="message m1 is delivered"):
        await store.append("s1", e.TurnCreated(agent="x"), e.MessageDelivered(message="m1"), turn=5)
    assert [row.number for row in await store.read(lambda conn: views.turns(conn, "s1"))] == [4]
    assert [row.id for row in await mailbox(store)] == ["m2"]
    assert await store.read(lambda conn: hive_views.hops_of_turn(conn, "s1", 4)) == 0
    assert await store.read(lambda conn: hive_views.hops_of_turn(conn, "s1", 5)) == -1
    assert await store.read(lambda conn: hive_views.count_waiting(conn, "s1")) == 1
    assert await store.read(lambda conn: hive_views.last_turn(conn, "s1")) is None
    await store.append("s1", e.TurnStarted(agent="x"), turn=4)
    assert await store.read(lambda conn: hive_views.running_turn(conn, "s1")) == 4
    await store.append("s1", e.TurnEnded(outcome="succeeded"), turn=4)
    assert await store.read(lambda conn: hive_views.open_turn(conn, "s1")) is None
    assert await store.read(lambda conn: hive_views.last_turn(conn, "s1")) == 4


async def test_a_held_message_waits_for_the_answer(store: Store) -> None:
    await joined(store)
    storm = e.AskOpened(ask="q1", kind="storm", asker="bob", to="operator", question="too many")
    await store.append("s1", storm, *(sent(id, sender="bob") for id in ("m1", "m2")))
    await store.append("s1", *(e.MessageHeld(message=id, ask="q1", reason="storm") for id in ("m1", "m2")))
    assert [row.id for row in await store.read(lambda conn: hive_views.held_by(conn, "q1"))] == ["m1", "m2"]
    assert await store.read(lambda conn: hive_views.sent_between(conn, "ada", "bob", 0.0)) == 0
    with pytest.raises(IllegalMove, match="message m1 is held"):
        await store.append("s1", e.MessageDelivered(message="m1"))
    await store.append("s1", e.MessageReleased(message="m1"), e.MessageDropped(message="m2"))
    assert [row.id for row in await mailbox(store)] == ["m1"]
    assert await store.read(lambda conn: hive_views.count_messages(conn, MessageState.DROPPED)) == {"s1": 1}


async def test_mail_for_the_operator_stays_when_its_author_is_removed(store: Store) -> None:
    await joined(store)
    await store.append("", sent("m1", sender="ada", to="operator"), sent("m2", sender="ada", to="operator"))
    await store.append("", e.MessageRead(message="m2"))
    await store.append("s1", sent("m3"), e.ReminderSet(reminder="r1", text="x", due_at=1.0))
    await store.append("s1", e.SessionFailed(failure=e.Failure(code="x", message="x")))
    await store.write(lambda conn: journal.forget(conn, "s1"))
    assert [row.id for row in await mailbox(store, "", MessageState.PENDING, MessageState.READ)] == ["m1", "m2"]
    assert await mailbox(store) == [] and await store.read(hive_views.reminders) == []
    assert await store.read(hive_views.members) == []
    assert (await store.read(lambda conn: hive_views.message(conn, "m1"))).sender == "ada"
    with pytest.raises(Ambiguous):
        await store.read(lambda conn: hive_views.message(conn, "m"))
    with pytest.raises(NotFound):
        await store.read(lambda conn: hive_views.message(conn, "m3"))


async def test_a_question_ends_once_and_outlives_the_turn(store: Store) -> None:
    await joined(store)
    asked = e.AskOpened(ask="q1", kind="question", asker="ada", to="bob", question="red?", options=OPTIONS, multi=True)
    await store.append("s1", e.TurnStarted(agent="x"), asked, turn=1)
    await store.append("s1", e.TurnEnded(outcome="succeeded"), turn=1)
    [row] = await store.read(lambda conn: hive_views.open_asks(conn, kinds=("question",)))
    assert (row.asker, row.target, row.multi, row.options, row.turn) == ("ada", "bob", True, OPTIONS, 1)
    await store.append("s1", e.AskAnswered(ask="q1", request="", allow=True, options=("1", "2"), by="bob"))
    row = await store.read(lambda conn: views.ask(conn, "q1"))
    assert (row.state, row.answered_by) == (AskState.ANSWERED, "bob")
    assert row.answer is not None and row.answer["options"] == ["1", "2"]
    for late in (e.AskAnswered(ask="q1", request="", allow=True), e.AskExpired(ask="q1"), e.AskWithdrawn(ask="q1")):
        with pytest.raises(IllegalMove, match="the question q1 is answered"):
            await store.append("s1", late)


async def test_a_question_that_this_version_cannot_read_is_listed(store: Store) -> None:
    await joined(store)
    await store.append("s1", e.AskOpened(ask="q1", kind="question", asker="ada", to="bob", question="red?"))
    await store.write(lambda conn: conn.execute(text("UPDATE asks SET kind = 'vote', options = '{\"a\": 1}'")) and None)
    [row] = await store.read(views.asks)
    assert (row.id, row.kind, row.options) == ("q1", "vote", ())


async def test_a_reminder_is_due_once_for_each_time(store: Store) -> None:
    await joined(store)
    await store.append("s1", e.ReminderSet(reminder="r1", text="look", due_at=10.0, every=5.0))
    await store.append("s1", e.ReminderDue(reminder="r1", due_at=10.0, next_at=15.0))
    with pytest.raises(IllegalMove, match="the reminder r1 is not set"):
        await store.append("s1", e.ReminderDue(reminder="r1", due_at=10.0, next_at=15.0))
    [row] = await store.read(lambda conn: hive_views.reminders(conn, "s1"))
    assert (row.due_at, row.every, row.text) == (15.0, 5.0, "look")
    await store.append("s1", e.ReminderCancelled(reminder="r1"))
    with pytest.raises(IllegalMove):
        await store.append("s1", e.ReminderCancelled(reminder="r1"))
