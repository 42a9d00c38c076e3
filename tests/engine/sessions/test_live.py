"""Live sessions: a process that stays between turns, spoken to by its protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import BadInput
from hiveyard.core.events import AgentText, TurnEnded
from hiveyard.core.states import AskState
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.sessions.steering import AskAnswer, AskView
from hiveyard.engine.snapshots.fork import ForkRequest
from tests.engine.conftest import Yard, git
from tests.engine.yards import PATIENCE, answer, events, run_turn, wait_until
from tests.support.live_puppet import NAME, register

pytestmark = pytest.mark.anyio
ACP_PROGRAM = Path(__file__).parents[2] / "support" / "acp_program.py"


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def live(engine: Engine, repo: Path, **more: object) -> str:
    """Return a running live session."""
    id = await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME, **more))  # type: ignore[arg-type]
    await wait_until(engine, id, lambda view: view.status == "running")
    return id


async def asked(engine: Engine) -> AskView:
    """Return the question that waits, once there is one."""
    with anyio.fail_after(PATIENCE):
        while not (found := await engine.steering.asks(all=False)):  # noqa: ASYNC110
            await anyio.sleep(0.05)
    return found[0]


async def told(engine: Engine, id: str, text: str) -> None:
    """Wait until the agent has said a text."""
    with anyio.fail_after(PATIENCE):
        while AgentText(text=text) not in [one.body for one in await events(engine, id, "agent.text")]:  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def outcomes(engine: Engine, id: str) -> list[tuple[int | None, str]]:
    ended = await events(engine, id, "turn.ended")
    return [(event.turn, event.body.outcome) for event in ended if isinstance(event.body, TurnEnded)]


async def test_turns_share_one_process_and_a_stopped_session_continues_its_conversation(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, prompt="remember apple")
        assert await answer(engine, id, 1) == "kept apple"
        assert await run_turn(engine, id, "recall") == "kept: apple"
        assert len(await events(engine, id, "live.started")) == 1
        assert (await engine.sessions.view(id)).mode == "live"
        await engine.sessions.stop(id)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        assert len(await events(engine, id, "live.started")) == 2
        await engine.sessions.stop(id)


async def test_an_interrupt_ends_the_turn_and_a_text_is_added_to_it(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo)
        with pytest.raises(BadInput, match="no turn runs"):
            await engine.steering.add(id, "early")
        turn = await engine.sessions.send(id, "wait")
        await wait_until(engine, id, lambda view: view.activity == "executing")
        await engine.steering.add(id, "more")
        await told(engine, id, "added: more")
        await engine.sessions.interrupt(id)
        await answer(engine, id, turn)
        assert await outcomes(engine, id) == [(1, "cancelled")]
        assert await run_turn(engine, id, "recall") == "kept: "
        await engine.sessions.stop(id)


async def test_a_question_waits_for_its_first_answer(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo)
        turn = await engine.sessions.send(id, "ask")
        ask = await asked(engine)
        assert (ask.session, ask.turn, ask.tool, ask.message) == (id, turn, "Touch", "may it?")
        assert [option.id for option in ask.options] == ["once", "always", "never"]
        assert (await engine.sessions.view(id)).activity == "waiting"
        with pytest.raises(BadInput, match="'perhaps' is not an answer"):
            await engine.steering.answer(ask.id, AskAnswer(answer="perhaps"))
        answered = await engine.steering.answer(ask.id, AskAnswer(answer="always", message="go on"))
        assert (answered.status, answered.answer) == (
            AskState.ANSWERED,
            {"allow": True, "option": "always", "message": "go on"},
        )
        assert await answer(engine, id, turn) == "answered: always go on"
        with pytest.raises(BadInput, match="it was answered with always"):
            await engine.steering.answer(ask.id, AskAnswer(answer="deny"))
        await engine.sessions.stop(id)


async def test_a_question_that_nobody_answered_expires_with_its_turn(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo)
        turn = await engine.sessions.send(id, "ask")
        ask = await asked(engine)
        await engine.sessions.interrupt(id)
        await answer(engine, id, turn)
        assert await engine.steering.asks(all=False) == []
        with pytest.raises(BadInput, match="does not wait for it any more"):
            await engine.steering.answer(ask.id, AskAnswer(answer="allow"))
        await engine.sessions.stop(id)


async def test_the_model_is_chosen_for_later_turns_and_kept(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, model="small")
        assert await run_turn(engine, id, "model") == "model: small"
        await engine.steering.choose_model(id, "large")
        assert await run_turn(engine, id, "model") == "model: large"
        await engine.sessions.stop(id)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "model") == "model: large"
        await engine.sessions.stop(id)


async def test_a_new_daemon_continues_the_turn_the_question_and_the_queue(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo)
        turn = await engine.sessions.send(id, "ask")
        later = await engine.sessions.send(id, "remember pear")
        ask = await asked(engine)
    async with yard.open() as engine:
        await wait_until(engine, id, lambda view: view.status == "running")
        with anyio.fail_after(PATIENCE):
            await engine.sessions.agent_runner(id)
        await engine.steering.answer(ask.id, AskAnswer(answer="never"))
        assert await answer(engine, id, turn) == "answered: never"
        assert await answer(engine, id, later) == "kept pear"
        assert len(await events(engine, id, "live.started")) == 1
        assert len(await events(engine, id, "agent.prompted")) == 2
        await engine.sessions.stop(id)


async def test_a_program_that_ends_by_itself_stops_the_session(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, prompt="die 3")
        view = await wait_until(engine, id, lambda view: view.status == "stopped")
        assert view.reason == "the agent's program ended with exit code 3"
        assert await outcomes(engine, id) == [(1, "failed")]
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: "
        await engine.sessions.stop(id)


async def test_after_much_output_another_process_continues_between_two_turns(yard: Yard, repo: Path) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, live_output_mib=1))
    async with yard.open() as engine:
        id = await live(engine, repo, prompt="remember apple")
        assert await run_turn(engine, id, "say 40 40000") == "said 40 40000"
        assert await run_turn(engine, id, "recall") == "kept: apple"
        assert len(await events(engine, id, "live.started")) == 2
        await engine.sessions.stop(id)


async def test_a_snapshot_is_forked_and_rewound_to(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await live(engine, repo, prompt="remember apple")
        await answer(engine, id, 1)
        await engine.snapshots.take(id, "early")
        assert await run_turn(engine, id, "remember pear") == "kept pear"
        [child] = (await engine.forks.fork(id, ForkRequest(snapshot="early"))).children
        await wait_until(engine, child, lambda view: view.status == "running")
        assert await run_turn(engine, child, "recall") == "kept: apple"
        await engine.rewinds.rewind(id, "early")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        for one in (id, child):
            await engine.sessions.stop(one)


async def test_any_program_that_speaks_acp_is_an_agent(yard: Yard, repo: Path) -> None:
    (repo / "agent.py").write_text(ACP_PROGRAM.read_text())
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "an agent")
    async with yard.open() as engine:
        request = SpawnRequest(repo=str(repo), agent="acp", command="python3 -u agent.py", ask=True)
        id = await engine.sessions.spawn(request)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "hello") == "you said: hello"
        turn = await engine.sessions.send(id, "secret")
        ask = await asked(engine)
        assert [option.id for option in ask.options] == ["yes", "no"]
        await engine.steering.answer(ask.id, AskAnswer(answer="yes"))
        assert await answer(engine, id, turn) == "you said: hello, secret"
        with pytest.raises(BadInput, match="cannot change its model"):
            await engine.steering.choose_model(id, "other")
        await engine.sessions.stop(id)
        with pytest.raises(BadInput, match="needs a command line"):
            await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent="acp"))
