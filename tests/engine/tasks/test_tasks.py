"""Tasks from request to result, on real parts."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from hiveyard.core.errors import BadInput, HiveyardError, MachineNotReady, NotFound
from hiveyard.core.events import AgentOutput, Notice, TaskCancelAsked, TurnEnded, TurnStarted
from hiveyard.engine.engine import Engine
from hiveyard.kit.names import new_id
from tests.engine.conftest import Yard, asked, done, git, told

pytestmark = pytest.mark.anyio


async def test_what_a_command_changes_becomes_a_branch_and_a_patch(yard: Yard, repo: Path) -> None:
    before = git(repo, "status", "--porcelain"), git(repo, "for-each-ref")
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "cat {{prompt_file}} > a.txt; echo new > c.txt; echo said"))
        report = await done(engine, id)
        assert (report.status, report.exit_code, report.error) == ("completed", 0, None)
        assert (report.commits, report.diffstat.files, report.diffstat.insertions) == (1, 2, 2)
        assert report.branch == "hv/do-it"
        assert report.tier == "namespace"
        assert report.patch is not None
        git(repo, "apply", "--check", report.patch)
        assert [event.raw for event in await told(engine, id) if isinstance(event.body, AgentOutput)] == [b"said"]
    assert (git(repo, "status", "--porcelain"), git(repo, "for-each-ref")) == before


async def test_a_repository_with_a_branch_named_hv_can_be_used(yard: Yard, repo: Path) -> None:
    git(repo, "branch", "hv")
    async with yard.open() as engine:
        report = await done(engine, await engine.submit(asked(repo, "echo new > c.txt")))
        assert (report.status, report.branch, report.commits) == ("completed", "hv-do-it", 1)


async def test_two_tasks_never_use_the_same_branch_name(yard: Yard, repo: Path) -> None:
    git(repo, "branch", "hv/do-it")
    async with yard.open() as engine:
        ids = [await engine.submit(asked(repo, "echo new > c.txt")) for _ in range(3)]
        names = {(await done(engine, id)).branch for id in ids}
        assert len(names - {"hv/do-it"}) == 3


async def test_a_notice_says_where_work_is_that_cannot_be_collected(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > ../kept.txt; rm -rf ../repo"))
        report = await done(engine, id)
        assert (report.status, report.commits) == ("failed", 0)
        place = yard.paths.sessions / id / "shared"
        assert (place / "kept.txt").read_text() == "x\n"
        notices = [event.body.message for event in await told(engine, id) if isinstance(event.body, Notice)]
        assert any(str(place) in notice for notice in notices)


GONE = "echo x > ../kept.txt; rm -rf ../repo; echo begun"


async def test_a_turn_whose_work_cannot_be_collected_has_ended_and_keep_keeps_its_machine(
    yard: Yard, repo: Path
) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, GONE, keep=True))
        report = await done(engine, id)
        assert report.error is not None
        assert (report.status, report.exit_code, report.error.code) == ("failed", 125, "repository")
        (ended,) = [event.body for event in await told(engine, id) if isinstance(event.body, TurnEnded)]
        assert (ended.outcome, ended.exit_code) == ("failed", 0)
        assert await engine._r.providers["bubblewrap"].names() == {f"hv-{id}"}
        await engine.remove(id, force=False)


async def test_a_timeout_stays_a_timeout_if_the_work_cannot_be_collected(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        report = await done(engine, await engine.submit(asked(repo, f"{GONE}; sleep 600", timeout=2.0)))
        assert report.error is not None
        assert (report.status, report.exit_code, report.error.code) == ("failed", 124, "agent.timeout")


async def test_a_cancelled_task_is_cancelled_if_its_work_cannot_be_collected(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, f"{GONE}; sleep 600"))
        await _until(engine, id, "agent.output")
        await engine.cancel(id)
        report = await done(engine, id)
        assert (report.status, report.exit_code, report.commits) == ("cancelled", 130, 0)


async def test_a_host_that_cannot_store_the_work_ends_the_turn_with_a_notice(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt; echo begun; sleep 600"))
        await _until(engine, id, "agent.output")
        (yard.paths.sessions / id / "result").touch()
        await engine.cancel(id)
        report = await done(engine, id)
        assert (report.status, report.exit_code, report.commits) == ("cancelled", 130, 0)
        notices = [event.body.message for event in await told(engine, id) if isinstance(event.body, Notice)]
        assert any("files are kept" in notice and "File exists" in notice for notice in notices)


async def test_a_repeated_request_with_the_same_id_returns_the_first_task(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        request = replace(asked(repo, "echo x > x.txt", branch="mine"), id=new_id())
        assert await engine.submit(request) == request.id
        assert await engine.submit(request) == request.id
        await done(engine, str(request.id))
        async with anyio.create_task_group() as group:  # also later, when its branch is there
            for _ in range(3):
                group.start_soon(engine.submit, request)
        assert len(await engine.reports(live_only=False)) == 1
        with pytest.raises(BadInput, match="created from another request"):
            await engine.submit(replace(request, prompt="something else"))
        assert len(await engine.reports(live_only=False)) == 1
        for wrong in ("../../../etc", "", "bcdfghjkm", "bcdfghjkmnp", "BCDFGHJKMN"):
            with pytest.raises(BadInput, match="is not an id"):
                await engine.submit(replace(request, id=wrong))


async def test_a_command_that_fails_is_a_failed_task_whose_work_is_kept(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        report = await done(engine, await engine.submit(asked(repo, "echo half > half.txt; exit 3")))
        assert (report.status, report.exit_code, report.commits) == ("failed", 1, 1)
        assert report.error is not None
        assert "3" in report.error.message


async def test_a_turn_that_times_out_is_stopped_and_collected(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        request = asked(repo, "echo x > x.txt; echo begun; sleep 600", timeout=2.0)
        report = await done(engine, await engine.submit(request))
        assert (report.status, report.exit_code, report.commits) == ("failed", 124, 1)


async def test_cancelling_keeps_the_work_so_far(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt; echo begun; sleep 600"))
        await _until(engine, id, "agent.output")
        await engine.cancel(id)
        report = await done(engine, id)
        assert (report.status, report.exit_code, report.commits) == ("cancelled", 130, 1)
        assert await engine._r.providers["bubblewrap"].names() == set()


async def test_a_cancel_during_a_short_collect_keeps_the_result(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt"))
        await _until(engine, id, "phase.ended", phase="agent")
        await engine.cancel(id)
        report = await done(engine, id)
        assert "task.cancel_asked" in [event.body.type for event in await told(engine, id)]
        assert (report.status, report.exit_code, report.error, report.commits) == ("completed", 0, None, 1)


async def test_a_late_cancel_stays_without_effect_after_a_restart(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt; exit 3"))
        await _until(engine, id, "phase.ended", phase="agent")
        await engine._r.event_log.record(id, TaskCancelAsked())
    async with yard.open() as engine:
        report = await done(engine, id)
        assert (report.status, report.exit_code, report.commits) == ("failed", 1, 1)


async def test_a_running_task_is_not_removed_unless_forced_and_then_nothing_is_left(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo begun; sleep 600"))
        await _until(engine, id, "agent.output")
        with pytest.raises(MachineNotReady, match="do-it is running"):
            await engine.remove(id, force=False)
        await engine.remove(id, force=True)
        assert await engine._r.providers["bubblewrap"].names() == set()
        assert not yard.paths.sessions.joinpath(id).exists()
        with pytest.raises(NotFound):
            await engine.report(id)


async def test_a_killed_daemon_loses_nothing_of_a_run(yard: Yard, repo: Path) -> None:
    command = "for i in $(seq 40); do echo line $i; sleep 0.05; done; echo x > x.txt"
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, command))
        await _until(engine, id, "agent.output")
    async with yard.open() as engine:
        report = await done(engine, id)
        assert (report.status, report.commits) == ("completed", 1)
        events = await told(engine, id)
        said = b"\n".join(event.raw or b"" for event in events if isinstance(event.body, AgentOutput))
        assert said.decode().splitlines() == [f"line {i}" for i in range(1, 41)]
        assert len([event for event in events if isinstance(event.body, TurnStarted)]) == 1


async def test_a_machine_that_dies_is_a_failed_task_with_the_work_so_far(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo x > x.txt; echo begun; sleep 600"))
        await _until(engine, id, "agent.output")
        await engine._r.providers["bubblewrap"].terminate(f"hv-{id}")
        report = await done(engine, id)
        assert report.error is not None
        assert (report.status, report.exit_code, report.error.code) == ("failed", 125, "machine.lost")
        assert report.commits == 1
        assert await engine._r.providers["bubblewrap"].names() == set()


async def test_a_machine_without_a_task_is_removed_at_start(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "true", keep=False))
        await done(engine, id)
        request = asked(repo, "echo kept", keep=True)
        kept = await engine.submit(request)
        await done(engine, kept)
        provider = engine._r.providers["bubblewrap"]
        assert await provider.names() == {f"hv-{kept}"}
        await engine.remove(kept, force=False)
        assert await provider.names() == set()


async def test_uncommitted_changes_are_reported_or_included(yard: Yard, repo: Path) -> None:
    (repo / "a.txt").write_text("changed\n")
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "cat a.txt"))
        await done(engine, id)
        events = await told(engine, id)
        assert any(isinstance(event.body, Notice) and "--include-dirty" in event.body.message for event in events)
        assert any(event.raw == b"one" for event in events)
        id = await engine.submit(asked(repo, "cat a.txt", include_dirty=True))
        await done(engine, id)
        assert any(event.raw == b"changed" for event in await told(engine, id))


async def test_a_bad_request_creates_no_task(yard: Yard, repo: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    git(tmp_path, "init", "-q", str(tmp_path / "bare-bones"))
    git(repo, "branch", "taken")
    async with yard.open() as engine:
        for request in (
            asked(tmp_path / "nowhere", "true"),
            asked(empty, "true"),
            asked(tmp_path / "bare-bones", "true"),
            asked(repo, "true", branch="taken"),
            asked(repo, "true", base="no-such-revision"),
            asked(repo, "true", provider="vmware"),
            asked(repo, "true", provider="auto"),
            asked(repo, "true", record="/nowhere/at/all.tape"),
            asked(repo, "true", tape=str(tmp_path / "no-tape")),
        ):
            with pytest.raises(HiveyardError) as raised:
                await engine.submit(request)
            assert "\n" not in raised.value.message
        assert await engine.reports(live_only=False) == []
        assert list(yard.paths.sessions.iterdir()) == []


async def test_no_key_of_the_host_is_in_the_guest(yard: Yard, repo: Path) -> None:
    secret = "sk-Zq8TestSecret"
    yard.environment["ANTHROPIC_API_KEY"] = secret
    os.environ["HIVEYARD_TEST_SECRET"] = secret
    try:
        async with yard.open() as engine:
            look = "env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'; cat /session/*.txt"
            id = await engine.submit(asked(repo, look))
            await done(engine, id)
            printed = b"".join(event.raw or b"" for event in await told(engine, id))
            assert b"ANTHROPIC_API_KEY" in printed
            assert secret.encode() not in printed
    finally:
        del os.environ["HIVEYARD_TEST_SECRET"]


async def _until(engine: Engine, id: str, type: str, **fields: object) -> None:
    async for event in engine.follow(id, after=0):
        if event.body.type == type and all(getattr(event.body, name) == value for name, value in fields.items()):
            return
