"""Concurrent changes: a removal and a writer, a cleanup and a resume, a rewind and a change of the budget."""

from __future__ import annotations

import contextlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import NoSpace, StoreUnusable
from hiveyard.core.events import AgentPrompted, Notice
from hiveyard.engine.sessions.request import session_request
from hiveyard.engine.snapshots.fork import ForkRequest
from hiveyard.engine.turns.terminal_runner import TerminalRunner
from hiveyard.engine.workspace.directory import Workspace
from tests.engine.conftest import Yard, git
from tests.engine.sessions.fake_live_snapshots import FakeLiveSnapshots, engine_with
from tests.engine.yards import FullDiskLog, answer, events, run_turn, spawned, spawned_with_snapshot, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


def test_a_session_is_removed_while_its_metadata_is_written(tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        for number in range(100):
            workspace = Workspace(tmp_path / f"s{number}")
            workspace.create(id=f"s{number}", slug="s", repo="r", agent="command", prompt="p", at=1.0)
            meta = workspace.meta()

            def write(workspace: Workspace = workspace, meta: object = meta) -> None:
                with contextlib.suppress(OSError):
                    workspace.write(meta)  # type: ignore[arg-type]

            writing = pool.submit(write)
            pool.submit(workspace.remove).result()
            writing.result()
    assert list(tmp_path.iterdir()) == []


async def test_a_prompt_that_could_not_be_journaled_is_not_sent(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        agent_runner = await engine.sessions.agent_runner(id)
        whole = agent_runner.resources
        agent_runner.resources = replace(whole, event_log=FullDiskLog(whole.event_log.store, whole.event_log.clock))
        with pytest.raises(StoreUnusable, match="full"):
            await engine.sessions.send(id, "remember pear")
        agent_runner.resources = whole
        assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        assert [event.turn for event in await events(engine, id) if isinstance(event.body, AgentPrompted)] == [1]
        await engine.sessions.stop(id)


async def test_a_queued_prompt_is_sent_after_one_typed_in_the_terminal(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.send(id, "wait")
        await wait_until(engine, id, lambda view: view.activity == "thinking")
        agent_runner = await engine.sessions.agent_runner(id)
        assert isinstance(agent_runner, TerminalRunner)
        async with engine.sessions.guest(id) as guest:
            await guest.write_atomic("/session/state/typed", b"remember pear")
            typed = replace(agent_runner.turn, prompt="/session/state/typed")
            assert (await guest.run(agent_runner.agent.send_prompt(typed))).ok
        waiting = await engine.sessions.send(id, "remember apple")
        await engine.sessions.interrupt(id)
        assert await answer(engine, id, waiting) == "done: remember apple"
        heard = [(event.turn, event.body) for event in await events(engine, id, "agent.prompted")]
        assert [(turn, body.text) for turn, body in heard if isinstance(body, AgentPrompted)] == [
            (1, "wait"),
            (3, "remember pear"),
            (2, "remember apple"),
        ]
        assert await run_turn(engine, id, "recall") == "kept: pear apple"
        await engine.sessions.stop(id)


async def test_the_next_daemon_can_rewind_a_paused_session(yard: Yard, repo: Path) -> None:
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned_with_snapshot(engine, repo)
        await engine.sessions.pause(id)
    async with engine_with(yard, FakeLiveSnapshots(yard, before=provider)) as engine:
        await engine.rewinds.rewind(id, "early", force=True)
        await wait_until(engine, id, lambda view: view.status == "running" and view.activity != "paused")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_files_of_an_unrecorded_rewind_are_removed_at_the_next_start(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        await engine.sessions.stop(id)
    (yard.paths.sessions / id / "shared.rewound" / "repo").mkdir(parents=True)
    async with yard.open() as engine:
        assert not (yard.paths.sessions / id / "shared.rewound").exists()
        await engine.sessions.resume(id)
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_an_import_keeps_the_disk_reserve_free(yard: Yard, repo: Path, tmp_path: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.stop(id)
        await engine.exports.export(id, tmp_path / "it")
        whole = engine.imports._r
        engine.imports._r = replace(whole, settings=replace(whole.settings, disk_reserve_mib=1 << 40))
        with pytest.raises(NoSpace, match="needs more space"):
            await engine.imports.import_archive(tmp_path / "it", new=True)
        assert [one.name for one in yard.paths.sessions.iterdir()] == [id]


async def test_a_lock_left_by_a_killed_git_does_not_block_collecting(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run echo x > x.txt")
        branch = (await engine.sessions.row(id)).branch
        origin = Workspace(yard.paths.sessions / id).origin
        lock = origin / f"refs/heads/{branch}.lock"
        lock.parent.mkdir(exist_ok=True)
        lock.touch()
        await engine.sessions.stop(id)
        assert git(origin, "show", f"{branch}:x.txt") == "x"


async def test_a_running_agent_continues_after_its_tape_was_removed(yard: Yard, repo: Path, tmp_path: Path) -> None:
    tapes = tmp_path / "tapes"
    tapes.mkdir()
    provider = FakeLiveSnapshots(yard)
    async with engine_with(yard, provider) as engine:
        id = await spawned(engine, repo, record=str(tapes / "it.tape"))
        await run_turn(engine, id, "remember apple")
    shutil.rmtree(tapes)
    async with engine_with(yard, again := FakeLiveSnapshots(yard, before=provider)) as engine:
        assert await run_turn(engine, id, "recall") == "kept: apple"
        said = [event.body.message for event in await events(engine, id) if isinstance(event.body, Notice)]
        assert [line for line in said if "recording stops" in line] == said
        assert (len(said), again.booted) == (1, [])
        await engine.sessions.stop(id)


class _Slow(FakeLiveSnapshots):
    """A provider with a leftover machine; removing machines waits until the gate is open."""

    async def names(self) -> set[str]:
        return {*await super().names(), "hv-aaaaaaaaaa"}

    async def terminate(self, name: str) -> None:
        await self.gate.wait()
        await super().terminate(name)


async def test_a_session_resumed_during_the_cleanup_keeps_its_door(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.stop(id)
    provider = _Slow(yard)
    provider.gate = anyio.Event()
    async with engine_with(yard, provider) as engine:
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        provider.gate.set()
        await anyio.sleep(0.5)
        assert (engine._r.door_path(id) / "door.sock").exists()
        assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        await engine.sessions.stop(id)


async def test_a_budget_shared_during_a_rewind_applies_to_the_new_door(yard: Yard, repo: Path) -> None:
    provider = _Slow(yard)
    async with engine_with(yard, provider) as engine, anyio.create_task_group() as group:
        id = await spawned_with_snapshot(engine, repo, budget_usd=1.0)
        provider.gate = anyio.Event()
        group.start_soon(engine.rewinds.rewind, id, "early")
        await wait_until(engine, id, lambda view: view.status != "running")
        group.start_soon(engine.forks.fork, id, ForkRequest(snapshot="early"))
        with anyio.fail_after(60):
            while session_request(await engine.sessions.row(id)).budget_usd == 1.0:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        provider.gate.set()
        await wait_until(engine, id, lambda view: view.status == "running")
        door = (await engine.sessions.runner(id)).door
        assert door is not None
        assert door._usage_recorder.budget.limit == pytest.approx(0.5)
        for child in list(yard.paths.sessions.iterdir()):
            await engine.sessions.stop(child.name)
