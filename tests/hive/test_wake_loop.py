"""Members are woken by their mail: each message starts one turn, or takes part in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hiveyard.core.events import AgentPrompted, LiveSteered, MessageDelivered, TurnCreated, TurnEnded
from hiveyard.core.states import MessageState
from tests.engine.conftest import Yard

from .conftest import opened

pytestmark = pytest.mark.anyio


async def test_a_message_starts_a_turn_and_is_delivered_with_it(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        view = await stage.add("ada", "remember apple", role="manager")
        assert (view.role, view.session.mode) == ("manager", "live")
        [first] = await stage.mail("ada")
        sent = await stage.send("ada", "recall")
        turn = await stage.turn_of(sent)
        assert turn == 2
        created = [body for body in await stage.bodies("ada") if isinstance(body, TurnCreated)]
        assert [body.woken_by for body in created] == [("message",), ("message",)]
        prompted = [body.text for body in await stage.bodies("ada") if isinstance(body, AgentPrompted)]
        assert f"message {sent.id} from operator" in prompted[1] and "\nrecall\n" in prompted[1]
        rows = await stage.mail("ada")
        assert [(row.state, row.turn) for row in rows] == [(MessageState.DELIVERED, 1), (MessageState.DELIVERED, 2)]
        assert first.sender == "operator" and first.text == "remember apple"
        await stage.members.stop("ada")


async def test_messages_that_wait_share_a_turn_and_urgent_ones_join_the_one_that_runs(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("ada", "wait")
        await stage.until("ada", lambda view: view.session.activity == "executing")
        late = [await stage.send("ada", text) for text in ("one", "two")]
        urgent = await stage.send("ada", "look here", priority="urgent")
        await stage.wait_for(lambda event: event.body == MessageDelivered(message=urgent.id, by="steer"))
        [steered] = [body for body in await stage.bodies("ada") if isinstance(body, LiveSteered)]
        assert "look here" in steered.text and ", urgent" in steered.text
        assert (await stage.members.view("ada")).waiting == 2
        await stage.engine.sessions.interrupt(await stage.session("ada"))
        assert [await stage.turn_of(one) for one in late] == [2, 2]
        await stage.members.stop("ada")


async def test_mail_for_a_stopped_member_waits_and_the_next_daemon_goes_on(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("ada")
        await stage.members.stop("ada")
        sent = await stage.send("ada", "remember apple")
        assert (await stage.members.view("ada")).state == "stopped"
    async with opened(yard, repo) as stage:
        assert (await stage.members.view("ada")).waiting == 1
        await stage.members.start("ada")
        assert await stage.turn_of(sent) == 1
        ended = [body for body in await stage.bodies("ada") if isinstance(body, TurnEnded)]
        assert [body.outcome for body in ended] == ["succeeded"]
        await stage.members.stop("ada")


async def test_an_idle_member_sleeps_and_its_mail_wakes_it(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo, asleep_after=0.3) as stage:
        await stage.add("ada", "remember apple")
        view = await stage.until("ada", lambda view: view.state == "asleep")
        assert (view.session.status, view.session.reason) == ("stopped", "asleep")
        sent = await stage.send("ada", "recall")
        turn = await stage.turn_of(sent)
        answers = [
            event.body.text  # type: ignore[union-attr]
            for event in await stage.engine.events(view.session.id, after=0, limit=1000)
            if event.body.type == "agent.ended" and event.turn == turn
        ]
        assert answers == ["kept: apple"]
        kinds = [body.type for body in await stage.bodies("ada") if body.type.startswith("member.")]
        assert kinds[:3] == ["member.joined", "member.asleep", "member.woken"]
        await stage.members.stop("ada")


async def test_a_member_that_was_stopped_asleep_is_not_woken(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo, asleep_after=0.3) as stage:
        await stage.add("ada", "remember apple")
        await stage.until("ada", lambda view: view.state == "asleep")
        await stage.members.stop("ada")
        sent = await stage.send("ada", "recall")
        assert (await stage.members.view("ada")).state == "stopped"
        await stage.members.start("ada")
        await stage.turn_of(sent)
        await stage.members.stop("ada")


async def test_only_the_operator_wakes_a_member_that_naps(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("ada", 'tool nap {"seconds": 600}')
        await stage.add("bob")
        await stage.until("ada", lambda view: view.state == "napping")
        waits = await stage.send("ada", "hello", sender="bob")
        view = await stage.members.view("ada")
        assert (view.state, view.waiting) == ("napping", 1)
        wakes = await stage.send("ada", "get up")
        turn = await stage.turn_of(wakes)
        assert await stage.turn_of(waits) == turn + 1  # the nap is over
        for name in ("ada", "bob"):
            await stage.members.stop(name)


async def test_files_go_from_machine_to_machine(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("bob")
        send = {"to": ["bob", "operator"], "text": "look", "files": ["/session/repo/a.txt"]}
        await stage.add("ada", f"tool send {json.dumps(send)}")
        mail = await stage.mail_from("ada")
        [name] = mail.files
        assert stage.hive.files.path(name).read_text() == "one\n"
        [told] = [one for one in await stage.mail("bob") if one.sender == "ada"]
        await stage.wait_for(lambda event: event.body == MessageDelivered(message=told.id))
        async with stage.engine.sessions.guest(await stage.session("bob")) as guest:
            assert await guest.read(f"/session/member/mail/{name}") == b"one\n"
        lost = {**send, "files": ["/session/repo/nothing"]}
        await stage.turn_of(await stage.send("ada", f"tool send {json.dumps(lost)}"))
        assert "error: " in (await stage.said("ada"))[-1] and "/session/repo/nothing" in (await stage.said("ada"))[-1]
        for member in ("ada", "bob"):
            await stage.members.stop(member)


async def test_a_members_program_is_given_the_tools_and_the_instructions(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("ada")
        for name, value in (("PUPPET_TOOLS", "hive"), ("PUPPET_SYSTEM", "You are ada")):
            turn = await stage.turn_of(await stage.send("ada", f"given {name}"))
            session = await stage.session("ada")
            ended = [
                event.body.text  # type: ignore[union-attr]
                for event in await stage.engine.events(session, after=0, limit=1000)
                if event.body.type == "agent.ended" and event.turn == turn
            ]
            assert value in ended[0][::-1]
        await stage.members.stop("ada")
