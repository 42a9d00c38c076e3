"""Messages: who may write to whom, what is too much, and what a message carries."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import BadInput, MessageHeldBack, NotAllowed, NotFound
from hiveyard.core.states import MessageState
from hiveyard.hive.mailbox import SIZE_LIMIT, MessageRequest
from hiveyard.hive.storm import DROP, GO_ON, MAX_HELD, RAISE

from .facts import Facts, facts

pytestmark = pytest.mark.anyio


async def test_messages_go_to_one_to_several_to_all_and_to_the_operator(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob", "eve")
        sent = await hive.hive.mailbox.send("ada", MessageRequest(to=["all", "operator", "bob"], text="hello"))
        assert sorted(one.to for one in sent) == ["bob", "eve", "operator"]
        assert len({one.id for one in sent}) == 3 and len({one.thread for one in sent}) == 1
        assert [row.sender for row in await hive.waiting("operator")] == ["ada"]
        assert await hive.waiting("ada") == []


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (MessageRequest(to=[], text="x"), BadInput, "no recipient"),
        (MessageRequest(to=["ada"], text="x"), BadInput, "ada cannot write to itself"),
        (MessageRequest(to=["nobody"], text="x"), NotFound, "no member 'nobody'"),
        (MessageRequest(to=["bob"], text=" \n"), BadInput, "is empty"),
        (MessageRequest(to=["bob"], text="\ud800"), BadInput, "not Unicode"),
        (MessageRequest(to=["bob"], text="x" * (SIZE_LIMIT + 1)), BadInput, "are allowed"),
        (MessageRequest(to=["bob"], text="x", reply_to="m"), NotFound, "no message 'm'"),
        (MessageRequest(to=["bob"], text="x", files={"../x": b""}), BadInput, "'../x' is not a name"),
        (MessageRequest(to=["bob"] * 101, text="x"), BadInput, "101 recipients"),
        (MessageRequest(to=["all"], text="x"), BadInput, "no other member"),
        (MessageRequest(to=["eve"], text="x"), NotAllowed, "eve takes no messages of ada"),
    ],
)
async def test_a_message_that_cannot_be_sent_is_refused(
    tmp_path: Path, request_: MessageRequest, error: type[Exception], words: str
) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        await hive.join("eve", accepts=("bob",))
        if request_.to != ["all"]:
            await hive.join("bob")
        with pytest.raises(error, match=words):
            await hive.hive.mailbox.send("ada", request_)
        assert await hive.waiting("bob") == [] and await hive.waiting("eve") == []


async def test_a_rule_says_who_may_write_and_the_operator_always_may(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob")
        await hive.join("eve", accepts=("bob",))
        for sender in ("bob", "operator"):
            await hive.send(sender, "eve")
        assert [one.to for one in await hive.hive.mailbox.send("ada", MessageRequest(to=["all"], text="x"))] == ["bob"]
        [peer] = [peer for peer in await hive.hive.peers(await hive.member("ada")) if peer.name == "eve"]
        assert not peer.accepts_you


async def test_a_reply_keeps_the_thread_and_a_stranger_cannot_reply(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob", "eve")
        first = await hive.send("operator", "ada")
        reply = await hive.send("ada", "operator", reply_to=first.id)
        again = await hive.send("operator", "ada", reply_to=reply.id[:6])
        assert [row.reply_to for row in await hive.waiting("ada")] == ["", reply.id]
        assert reply.thread == again.thread == first.id
        with pytest.raises(NotFound):
            await hive.send("eve", "ada", reply_to=first.id)


async def test_a_long_text_and_files_are_kept_on_the_host(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        await hive.send("operator", "ada", "é" * 40_000, files={"a.txt": b"inside"})
        [row] = await hive.waiting("ada")
        assert len(row.text) < 3000 and "all of it is in /session/member/mail/" in row.text
        text, file = row.files
        assert hive.hive.files.path(text).read_text() == "é" * 40_000
        assert hive.hive.files.path(file).read_bytes() == b"inside"


async def chain(hive: Facts, length: int) -> None:
    """Let ada and bob answer each other, beginning with a message of the operator."""
    sent = await hive.send("operator", "ada")
    for number in range(1, length + 1):
        one, other = ("ada", "bob") if number % 2 else ("bob", "ada")
        await hive.turn(one, number, sent.id)
        sent = await hive.send(one, other, f"hello {number}")
        await hive.end_turn(one, number)
        hive.clock.time += 60


async def test_a_chain_of_messages_is_held_and_the_operator_lets_it_go_on(tmp_path: Path) -> None:
    async with facts(tmp_path, max_hops=4) as hive:
        await hive.join("ada", "bob")
        with pytest.raises(MessageHeldBack, match="5 messages of members followed from each other; 4 may"):
            await chain(hive, 5)
        [held] = await hive.waiting("bob", MessageState.HELD)
        [ask] = await hive.asks()
        assert (ask.kind, ask.asker, ask.target, ask.id) == ("storm", "ada", "operator", held.held_by)
        with pytest.raises(NotAllowed):
            await hive.hive.asks.answer(ask.id, "bob", [GO_ON])
        await hive.hive.asks.answer(ask.id, "operator", [GO_ON])
        [row] = [row for row in await hive.waiting("bob") if row.id == held.id]
        assert row.hops == 0
        await hive.end_turn("ada", 5)
        await hive.turn("bob", 6, held.id)
        await hive.send("bob", "ada", "at last")


async def test_many_messages_a_minute_are_held_and_then_refused(tmp_path: Path) -> None:
    async with facts(tmp_path, messages_per_minute=3) as hive:
        await hive.join("ada", "bob")
        for sender, to in (("ada", "bob"), ("bob", "ada"), ("bob", "ada")):
            await hive.send(sender, to, f"from {sender} {hive.clock.time}")
            hive.clock.time += 1
        for number in range(MAX_HELD):
            with pytest.raises(MessageHeldBack, match="4 messages in a minute; 3 may be sent"):
                await hive.send("ada", "bob", f"number {number}")
        with pytest.raises(MessageHeldBack, match="was refused"):
            await hive.send("ada", "bob", "one more")
        [ask] = await hive.asks()
        await hive.hive.asks.answer(ask.id, "operator", [DROP])
        hive.clock.time += 1
        assert await hive.waiting("bob", MessageState.HELD) == []
        assert len(await hive.waiting("bob", MessageState.DROPPED)) == MAX_HELD
        await hive.send("ada", "bob", "anew")
        for _ in range(100):
            await hive.send("operator", "ada")


async def test_the_operator_may_raise_the_limit_of_two_members(tmp_path: Path) -> None:
    async with facts(tmp_path, messages_per_minute=1) as hive:
        await hive.join("ada", "bob")
        await hive.send("ada", "bob", "first")
        with pytest.raises(MessageHeldBack):
            await hive.send("ada", "bob", "second")
        [ask] = await hive.asks()
        await hive.hive.asks.answer(ask.id, "operator", [RAISE])
        hive.clock.time += 1
        assert len(await hive.waiting("bob")) == 2
        for text in ("third", "fourth"):
            await hive.send("bob", "ada", text)
        with pytest.raises(MessageHeldBack, match="2 may be sent"):
            await hive.send("bob", "ada", "fifth")


async def test_the_same_text_of_a_member_again_is_the_same_message(tmp_path: Path) -> None:
    async with facts(tmp_path, messages_per_minute=1) as hive:
        await hive.join("ada", "bob")
        first = await hive.send("ada", "bob")
        assert (await hive.send("ada", "bob")).id == first.id
        for _ in range(2):
            with pytest.raises(MessageHeldBack):
                await hive.send("ada", "bob", "more")
        assert len(await hive.waiting("bob", MessageState.HELD)) == 1
        twice = [await hive.send("operator", "ada") for _ in range(2)]
        assert twice[0].id != twice[1].id
        report = await hive.send("ada", "operator")
        hive.clock.time += 61
        assert (await hive.send("ada", "operator")).id != report.id


async def test_the_operator_reads_mail_once(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        sent = await hive.send("ada", "operator")
        other = await hive.send("operator", "ada")
        for _ in range(2):
            await hive.hive.mailbox.mark_read([sent.id, other.id])
        assert await hive.waiting("operator") == []
        assert len(await hive.waiting("ada")) == 1
        with pytest.raises(NotFound):
            await hive.hive.mailbox.mark_read(["nothing"])


async def test_a_message_that_is_taken_is_not_taken_again(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        await hive.send("operator", "ada")
        ada = await hive.member("ada")
        assert [row.text for row in await hive.hive.receive(ada, 0.0)] == ["hello"]
        assert await hive.hive.receive(ada, 0.01) == []


async def test_a_call_that_is_left_over_from_a_turn_takes_no_message(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        await hive.turn("ada", 1)
        taken: list[object] = []

        async def receive() -> None:
            taken.extend(await hive.hive.receive(await hive.member("ada"), 60.0))

        async with anyio.create_task_group() as group:
            group.start_soon(receive)
            await anyio.wait_all_tasks_blocked()
            await hive.end_turn("ada", 1)
            await hive.send("operator", "ada")
            hive.hive.bells.ring("s-ada")
        assert taken == [] and len(await hive.waiting("ada")) == 1
