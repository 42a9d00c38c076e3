"""After a crash at any moment, the next daemon continues the work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Connection

from hiveyard.core.errors import NotFound, StoreUnusable
from hiveyard.core.events import AgentOutput, AnyBody, MachineBooting, TaskCancelAsked
from hiveyard.engine.engine import Engine
from hiveyard.engine.tasks.task_runner import TaskRunner
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.names import new_id
from hiveyard.store import journal
from hiveyard.store.database import Store
from tests.engine.conftest import Yard, asked, done, told
from tests.engine.yards import spawned
from tests.support.puppet import register

pytestmark = pytest.mark.anyio

SLOW = "echo x > x.txt; echo begun; sleep 600"


async def test_a_cancel_before_a_kill_is_done_by_the_next_daemon_and_keeps_the_work(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, SLOW))
        await until(engine, id, "agent.output")
        await engine._r.event_log.record(id, TaskCancelAsked())
    async with yard.open() as engine:
        report = await done(engine, id)
        assert (report.status, report.exit_code, report.commits) == ("cancelled", 130, 1)


async def test_an_agent_that_ended_before_its_machine_was_lost_has_succeeded(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo begun; sleep 1; echo x > x.txt; echo last"))
        await until(engine, id, "agent.output")
    await anyio.sleep(3)
    async with yard.open() as engine:
        await engine._r.providers["bubblewrap"].terminate(f"hv-{id}")
        report = await done(engine, id)
        assert (report.status, report.exit_code, report.commits) == ("completed", 0, 1)
        assert said(await told(engine, id)) == ["begun", "last"]


async def test_a_cancelled_task_whose_machine_dies_is_cancelled(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, SLOW))
        await until(engine, id, "agent.output")
        await engine._r.event_log.record(id, TaskCancelAsked())
    async with yard.open() as engine:
        await engine._r.providers["bubblewrap"].terminate(f"hv-{id}")
        report = await done(engine, id)
        assert (report.status, report.commits) == ("cancelled", 1)


async def test_a_task_that_waits_for_a_slot_is_cancelled_at_once(yard: Yard, repo: Path) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, max_tasks=1))
    async with yard.open() as engine:
        first = await engine.submit(asked(repo, SLOW))
        await until(engine, first, "agent.output")
        second = await engine.submit(asked(repo, "true"))
        await engine.cancel(second)
        with anyio.fail_after(20):
            assert (await done(engine, second)).status == "cancelled"
        assert (await engine.report(first)).status == "running"
        await engine.remove(first, force=True)


async def test_after_a_restart_an_agent_at_work_does_not_wait_behind_a_queued_task(yard: Yard, repo: Path) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, max_tasks=1))
    async with yard.open() as engine:
        working = await engine.submit(asked(repo, "echo begun; sleep 4; echo late"))
        await until(engine, working, "agent.output")
        queued = await engine.submit(asked(repo, "echo queued"))
    async with yard.open() as engine:
        with anyio.fail_after(60):
            await done(engine, working)
            await done(engine, queued)
        ends = [(await engine.report(id)).ended_at or 0 for id in (working, queued)]
        assert ends[0] < ends[1]


async def test_two_concurrent_removals_of_a_task_remove_it_once(yard: Yard, repo: Path) -> None:
    outcomes: list[str] = []

    async def remove(engine: Engine, id: str) -> None:
        try:
            await engine.remove(id, force=True)
            outcomes.append("removed")
        except NotFound:
            outcomes.append("not found")

    async with yard.open() as engine:
        id = await engine.submit(asked(repo, SLOW))
        await until(engine, id, "agent.output")
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(remove, engine, id)
        assert sorted(outcomes) == ["not found", "not found", "removed"]
        assert not yard.paths.sessions.joinpath(id).exists()


async def test_following_a_task_ends_when_it_is_removed(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "true"))
        await done(engine, id)

        async def follow(task_status: anyio.abc.TaskStatus[None]) -> None:
            last = (await told(engine, id))[-1].seq
            task_status.started()
            async for _ in engine.follow(id, after=last):
                pass

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                await group.start(follow)
                await anyio.sleep(0.1)
                await engine.remove(id, force=False)


@pytest.mark.usefixtures("file_journal")
async def test_unfinished_directories_are_removed_and_work_is_not(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt; echo done"))
        await done(engine, id)
    sessions = yard.paths.sessions
    never = Workspace(sessions / "neverbegun")
    never.create(id="neverbegun", slug="s", repo="r", agent="command", prompt="p", at=0.0)
    half = sessions / "halfgone"
    (half / "shared" / "repo").mkdir(parents=True)
    yard.paths.database.unlink()  # what `store.unusable` advises for a damaged journal
    async with yard.open():
        with anyio.fail_after(30):
            while never.root.exists() or half.exists():  # noqa: ASYNC110 (no system tells us)
                await anyio.sleep(0.05)
        assert (sessions / id / "result" / "changes.patch").exists()


async def test_a_directory_that_is_renamed_for_removal_keeps_its_name_and_is_removed(yard: Yard) -> None:
    """A daemon may be killed again and again before the removal, and the length of a name is limited."""
    left = yard.paths.sessions / f".{new_id() * 24}.removed"
    left.mkdir(parents=True)
    async with yard.open():
        with anyio.fail_after(30):
            while list(yard.paths.sessions.iterdir()):  # noqa: ASYNC110
                await anyio.sleep(0.05)


async def test_a_repeated_request_after_a_kill_gets_a_directory_that_is_not_swept(yard: Yard, repo: Path) -> None:
    """The daemon was killed after creating the directory and before the journal entry; the caller repeats the
    request."""
    request = asked(repo, "echo x > x.txt", id=new_id())
    left = Workspace(yard.paths.sessions / str(request.id))
    left.create(id=left.root.name, slug="s", repo="r", agent="command", prompt="of the first time", at=0.0)
    async with yard.open() as engine:
        assert not left.root.exists(), "it is out of the way before anything can be asked for"
        report = await done(engine, await engine.submit(request))
        assert (report.id, report.status, report.commits) == (request.id, "completed", 1)
        assert (left.shared / "prompt.txt").read_text() == request.prompt
        with anyio.fail_after(30):
            while [one.name for one in yard.paths.sessions.iterdir()] != [request.id]:  # noqa: ASYNC110
                await anyio.sleep(0.05)


async def test_a_task_that_cannot_continue_does_not_affect_others(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        broken = TaskRunner("no-such-task", engine._r)
        engine.sessions.attend(broken)
        await broken.over.wait()
        assert (await done(engine, await engine.submit(asked(repo, "echo fine")))).status == "completed"


async def test_a_full_disk_delays_the_end_of_a_task_and_does_not_lose_it(yard: Yard, repo: Path) -> None:
    """The journal refuses for a while, as SQLite does when the disk is full."""

    class Full:
        def __init__(self, runner: TaskRunner) -> None:
            self.event_log, self.refusals = runner._event_log, 2

        def __getattr__(self, name: str) -> object:
            return getattr(self.event_log, name)

        async def record(self, session: str, *bodies: AnyBody, turn: int | None = None) -> None:
            if bodies[-1].type == "task.completed" and self.refusals:
                self.refusals -= 1
                raise StoreUnusable("the disk is full")
            await self.event_log.record(session, *bodies, turn=turn)

    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "sleep 1; echo x > x.txt; echo done"))
        runner = engine.sessions.find_runner(id)
        assert isinstance(runner, TaskRunner)
        full = Full(runner)
        runner._event_log = full  # type: ignore[assignment]
        with anyio.fail_after(60):
            assert (await done(engine, id)).status == "completed"
        assert full.refusals == 0


async def test_two_callers_may_release_the_same_machine(yard: Yard, repo: Path) -> None:
    from hiveyard.engine.placement.machine_lease import MachineLease

    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo done", keep=True))
        await done(engine, id)
        lease = MachineLease(id, engine._r.providers["bubblewrap"], None, engine._r.event_log)
        async with anyio.create_task_group() as group:
            group.start_soon(lease.release)
            group.start_soon(lease.release)
        types = [event.body.type for event in await told(engine, id)]
        assert types.count("machine.stopping") == types.count("machine.stopped") == 1
        assert MachineBooting.__struct_config__.tag in types


class Killed(Exception):
    """Simulates the end of the daemon."""


class Dying:
    """A store that fails after the journal has forgotten a task, or just before."""

    def __init__(self, store: Store, *, before: bool) -> None:
        self._store, self._before = store, before

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def write(self, write: Callable[[Connection], object]) -> object:
        def forgetting(conn: Connection) -> tuple[object, set[str]]:
            known = set(journal.sessions_with_events(conn))
            made = write(conn)
            forgotten = known - set(journal.sessions_with_events(conn))
            if forgotten and self._before:
                raise Killed
            return made, forgotten

        made, forgotten = await self._store.write(forgetting)
        if forgotten:
            raise Killed
        return made


@pytest.mark.parametrize("kind", ["task", "session"])
async def test_files_of_a_forgotten_task_are_removed_after_a_kill(kind: str, yard: Yard, repo: Path) -> None:
    register()
    async with yard.open() as engine:
        if kind == "task":
            id = await engine.submit(asked(repo, "echo x > x.txt"))
            await done(engine, id)
        else:
            id = await spawned(engine, repo)
        root = yard.paths.sessions / id
        engine._r.event_log.store = Dying(engine._r.event_log.store, before=False)  # type: ignore[assignment]
        with pytest.raises(Killed):
            await engine.remove(id, force=True)
        assert (root / "origin.git" / "HEAD").exists()
    async with yard.open() as engine:
        with anyio.fail_after(60):
            while root.exists():  # noqa: ASYNC110
                await anyio.sleep(0.05)


async def test_a_task_is_complete_if_the_daemon_was_killed_before_forgetting_it(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt"))
        await done(engine, id)
        engine._r.event_log.store = Dying(engine._r.event_log.store, before=True)  # type: ignore[assignment]
        with pytest.raises(Killed):
            await engine.remove(id, force=False)
    workspace = Workspace(yard.paths.sessions / id)
    async with yard.open() as engine:
        with anyio.fail_after(60):
            while workspace.unfinished.exists():  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert workspace.has_started
        assert (await engine.report(id)).commits == 1
        await engine.remove(id, force=False)
        assert not workspace.root.exists()


def said(events: object) -> list[str]:
    raw = [event.raw for event in events if isinstance(event.body, AgentOutput)]  # type: ignore[attr-defined]
    return b"\n".join(line or b"" for line in raw).decode().splitlines()


async def until(engine: Engine, id: str, type: str) -> None:
    async for event in engine.follow(id, after=0):
        if event.body.type == type:
            return
