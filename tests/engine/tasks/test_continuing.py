"""A task that is over goes on as a session, in the same conversation."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput, MachineNotReady, NotFound, SessionNotRunning
from hiveyard.engine.tasks.request import TaskRequest
from tests.engine.conftest import Yard, asked, done
from tests.engine.yards import answer, events, run_turn, wait_until
from tests.support.live_puppet import NAME, register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


def task(repo: Path, prompt: str = "remember apple", **more: object) -> TaskRequest:
    return TaskRequest(repo=str(repo), prompt=prompt, agent=NAME, **more)  # type: ignore[arg-type]


async def test_a_prompt_after_the_end_of_a_task_continues_its_conversation(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(task(repo, model="small"))
        assert (await done(engine, id)).status == "completed"
        with pytest.raises(NotFound, match="is a task, not a session"):
            await engine.sessions.row(id)
        turn = await engine.sessions.send(id, "recall")
        assert (turn, await answer(engine, id, turn)) == (2, "kept: apple")
        assert await run_turn(engine, id, "model") == "model: small"
        view = await engine.sessions.view(id)
        assert (view.status, view.mode, view.turns) == ("running", "live", 3)
        assert (await engine.report(id)).status == "completed"
        assert [one.id for one in await engine.sessions.views(over=False)] == [id]
        with pytest.raises(MachineNotReady):
            await engine.remove(id, force=False)
    async with yard.open() as engine:  # it is a session for the next daemon, too
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.remove(id, force=True)
        with pytest.raises(NotFound):
            await engine.report(id)


async def test_a_task_that_failed_goes_on_with_its_next_prompt(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(task(repo, "die 3"))
        assert (await done(engine, id)).status == "failed"
        assert await engine.sessions.resume(id, prompt="remember pear") == 2
        assert await answer(engine, id, 2) == "kept pear"
        assert (await engine.sessions.view(id)).error is None
        assert len(await events(engine, id, "session.opened")) == 1
        await engine.sessions.stop(id)


async def test_what_cannot_go_on_says_so_and_stays_a_task(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "sleep 600"))
        with pytest.raises(SessionNotRunning, match="is a task, and"):
            await engine.sessions.send(id, "more")
        await engine.cancel(id)
        await done(engine, id)
        with pytest.raises(BadInput, match="cannot stay in a session"):
            await engine.sessions.resume(id)
        with pytest.raises(NotFound, match="is a task, not a session"):
            await engine.sessions.row(id)


async def test_a_stop_ends_a_task_and_a_command_runs_beside_its_agent(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt; touch ../begun; sleep 600"))
        with anyio.fail_after(60):
            while not (yard.paths.sessions / id / "shared/begun").exists():  # noqa: ASYNC110
                await anyio.sleep(0.05)
        await engine.sessions.check_reachable(id)
        async with engine.sessions.guest(id) as guest:
            seen = await guest.run(Command(shell="cat /session/repo/x.txt"), timeout=20)
        assert seen.stdout == b"x\n"
        view = await wait_until(engine, id, lambda view: view.status == "running")
        assert (view.mode, view.task) == ("one-shot", "running")
        with pytest.raises(BadInput, match="one turn only"):
            await engine.sessions.interrupt(id)
        with pytest.raises(BadInput, match="held one-shot and has no terminal"):
            await engine.access.terminal(id, Command(argv=("true",)), of_agent=True)
        with pytest.raises(SessionNotRunning, match="has no ports"):
            await engine.access.open_port(id, 3000, None)
        await engine.sessions.stop(id)
        report = await engine.report(id)
        assert (report.status, report.commits) == ("cancelled", 1)
