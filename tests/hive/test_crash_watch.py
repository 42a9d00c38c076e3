"""A member whose session ends unasked starts again, up to three times in ten minutes; then the operator is asked."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.core import events as e
from hiveyard.core.states import AskState
from hiveyard.engine.sessions.steering import AskAnswer, AskView
from hiveyard.hive.crash_watch import Fate, fate_of
from tests.engine.conftest import Yard
from tests.engine.yards import PATIENCE

from .conftest import Stage, opened
from .facts import Facts, facts

pytestmark = pytest.mark.anyio


async def kill_machine(stage: Stage, name: str) -> None:
    """Kill a member's machine and wait until that is journaled, and the member runs again or rests."""
    before = len(await crashes(stage, name))
    await stage.parts.providers["bubblewrap"].terminate(f"hv-{await stage.session(name)}")
    with anyio.fail_after(PATIENCE):
        while len(await crashes(stage, name)) == before:  # noqa: ASYNC110
            await anyio.sleep(0.05)
    rests = bool((await crashes(stage, name))[-1].ask)
    await stage.until(name, lambda view: view.session.status == ("stopped" if rests else "running"))


async def crashes(stage: Stage, name: str) -> list[e.MemberCrashed]:
    return [body for body in await stage.bodies(name) if isinstance(body, e.MemberCrashed)]


async def desk(stage: Stage) -> list[AskView]:
    return list(await stage.engine.steering.asks(all=False))


async def test_a_program_that_ends_is_started_again_and_the_manager_is_told(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("max", role="manager")
        await stage.add("ada", "remember apple")
        await stage.turn_of(await stage.send("ada", "say 1 10"))
        await stage.turn_of(await stage.send("ada", "die 3"))
        await stage.wait_for(lambda event: isinstance(event.body, e.MemberCrashed))
        assert await stage.turn_of(await stage.send("ada", "recall")) == 4
        ended = [body.text for body in await stage.bodies("ada") if isinstance(body, e.AgentEnded)]
        assert ended[-1] == "kept: apple"
        [told] = await stage.mail("max")
        assert told.sender == "hive" and told.turn == 1
        assert told.text.startswith(
            "ada ended unasked: the agent's program ended with exit code 3\nIt starts again (1 "
        )
        assert "\ndie 3\n" in told.text
        assert told.text.endswith("\nthe session stopped: the agent's program ended with exit code 3")
        await stage.engine.sessions.stop(await stage.session("ada"))
        await stage.members.stop("max")
        assert [await crashes(stage, name) for name in ("ada", "max")] == [
            [e.MemberCrashed(name="ada", reason="the agent's program ended with exit code 3")],
            [],
        ]


async def test_a_machine_that_dies_again_and_again_becomes_a_question_also_with_a_new_daemon(
    yard: Yard, repo: Path
) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("ada")
        await stage.turn_of(await stage.send("ada", "remember apple"))
        for _ in range(2):
            await kill_machine(stage, "ada")
        id = await stage.session("ada")
    # The third dies while no daemon runs.
    await stage.parts.providers["bubblewrap"].terminate(f"hv-{id}")
    async with opened(yard, repo) as stage:
        await stage.wait_for(lambda event: isinstance(event.body, e.MemberCrashed) and "no daemon" in event.body.reason)
        await stage.until("ada", lambda view: view.session.status == "running")
        await kill_machine(stage, "ada")
        assert [bool(crash.ask) for crash in await crashes(stage, "ada")] == [False, False, False, True]
        sent = await stage.send("ada", "recall")
        [ask] = await desk(stage)
        assert (ask.kind, ask.to, [option.id for option in ask.options]) == ("crash", "operator", ["start", "leave"])
        assert ask.message.startswith("ada ended unasked and rests: ")
        assert (await stage.members.view("ada")).state == "stopped"
    async with opened(yard, repo) as stage:
        assert (await stage.members.view("ada")).waiting == 1
        await stage.members.answer(ask.id, AskAnswer(answer="start"))
        assert await stage.turn_of(sent) > 0
        await kill_machine(stage, "ada")
        [second] = await desk(stage)
        await stage.members.start("ada")
        await stage.wait_for(lambda event: event.body == e.AskWithdrawn(ask=second.id))
        await kill_machine(stage, "ada")
        [third] = await desk(stage)
        await stage.members.answer(third.id, AskAnswer(answer="leave"))
        assert await desk(stage) == [] and (await stage.members.view("ada")).state == "stopped"
        assert (await stage.engine.steering.ask(third.id)).status is AskState.ANSWERED


async def fate(hive: Facts, *bodies: e.AnyBody) -> Fate:
    """Return what follows from more events of ada, whose session has stopped then."""
    await hive.log.record("s-ada", *bodies)
    return await hive.log.read(lambda conn: fate_of(conn, "s-ada"))


async def test_only_an_end_that_nobody_asked_for_is_a_crash(tmp_path: Path) -> None:
    run = (e.SessionPreparing(), e.SessionRunning())
    asked, asleep = e.SessionStopAsked(), e.SessionStopAsked(reason="asleep")
    stopped, woken = e.SessionStopped(reason="x"), e.MemberWoken(name="ada", by="operator")
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        assert await fate(hive, *run, asked, stopped) is Fate.RESTS
        assert await fate(hive, woken) is Fate.STARTS
        assert await fate(hive, asked) is Fate.RESTS, "it was stopped while it waited for a place"
        assert await fate(hive, *run, stopped) is Fate.CRASHED
        assert await fate(hive, e.MemberStopped(name="ada")) is Fate.RESTS
        assert await fate(hive, *run, woken, asleep, stopped) is Fate.CRASHED, "it died before it was put to sleep"
        assert await fate(hive, e.MemberCrashed(name="ada", reason="x")) is Fate.STARTS
        assert await fate(hive, e.SessionPreparing(), stopped) is Fate.CRASHED, "its machine did not boot"
        assert await fate(hive, e.MemberCrashed(name="ada", reason="x", ask="a1")) is Fate.RESTS
