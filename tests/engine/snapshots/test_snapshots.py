"""Snapshots, forks and rewinds of real sessions, on a provider without live snapshots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import msgspec
import pytest

from hiveyard.core.errors import (
    BadInput,
    BudgetSpent,
    NoSpace,
    NotFound,
    SessionDamaged,
    SessionInUse,
    SessionNotRunning,
)
from hiveyard.core.events import BudgetSet, Notice, SessionForked, SnapshotTaken
from hiveyard.engine.snapshots.automatic import TurnSnapshots
from hiveyard.engine.snapshots.fork import ForkRequest
from hiveyard.engine.snapshots.service import Snapshots
from hiveyard.engine.workspace import snapshot_files
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.engine.workspace.session_files import copy_error
from hiveyard.store.lineage import Point
from tests.engine.conftest import Yard, git
from tests.engine.yards import answer, events, run_turn, spawned, spawned_with_snapshot, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


def workspace(yard: Yard, id: str) -> Workspace:
    return Workspace(yard.paths.sessions / id)


async def test_a_rewind_returns_to_the_end_of_the_first_turn(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo, snapshots="turns")
        await run_turn(engine, id, "remember apple")
        await run_turn(engine, id, "run echo pear > fruit.txt")
        await run_turn(engine, id, "remember cherry")
        assert await run_turn(engine, id, "recall") == "kept: apple cherry"
        names = [snapshot.name for snapshot in await engine.snapshots.list(id)]
        assert names[:3] == ["turn-1", "turn-2", "turn-3"]
        await engine.rewinds.rewind(id, "turn-1")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert not (workspace(yard, id).shared / "repo" / "fruit.txt").exists()
        assert await run_turn(engine, id, "recall") == "kept: apple"
        # And forward again: a rewind does not lose the later snapshots.
        await engine.rewinds.rewind(id, "turn-3")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert (workspace(yard, id).shared / "repo" / "fruit.txt").read_text() == "pear\n"
        assert await run_turn(engine, id, "recall") == "kept: apple cherry"
        await engine.sessions.stop(id)


async def test_children_continue_the_conversation_with_their_own_instructions(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        await run_turn(engine, id, "run echo one > one.txt")
        spec = ForkRequest(instructions=["remember pear", "run echo two > two.txt"], name="idea")
        forked = await engine.forks.fork(id, spec)
        assert not forked.live
        assert "copied" in forked.notice
        first, second = forked.children
        await answer(engine, first, 1)
        await answer(engine, second, 1)
        assert await run_turn(engine, first, "recall") == "kept: apple pear"
        assert await run_turn(engine, second, "recall") == "kept: apple"
        assert await run_turn(engine, id, "recall") == "kept: apple"
        views = [await engine.sessions.view(child) for child in forked.children]
        assert [view.name for view in views] == ["idea", "idea-2"]
        assert [view.branch for view in views] == ["hv/idea", "hv/idea-2"]
        assert [view.parent for view in views] == [id, id]
        # Each has its own files, key and work.
        assert (workspace(yard, second).shared / "repo" / "two.txt").exists()
        assert not (workspace(yard, id).shared / "repo" / "two.txt").exists()
        assert (workspace(yard, first).shared / "repo" / "one.txt").exists()
        keys = {workspace(yard, one).keys().placeholder for one in (id, first, second)}
        assert len(keys) == 3
        assert workspace(yard, first).keys().inherited == (workspace(yard, id).keys().placeholder,)
        await engine.sessions.collect(second)
        at = workspace(yard, second).origin
        assert "two.txt" in git(at, "diff", "--name-only", views[1].base or "", "hv/idea-2")
        # The snapshot was only for the fork.
        with anyio.fail_after(30):
            while list(workspace(yard, id).snapshots.iterdir()):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert await engine.snapshots.list(id) == []
        for one in (id, first, second):
            await engine.sessions.stop(one)


async def test_a_child_outlives_its_parent(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        (child,) = (await engine.forks.fork(id, ForkRequest())).children
        await wait_until(engine, child, lambda view: view.status == "running")
        await engine.remove(id, force=True)
        await engine.sessions.stop(child)
        await engine.sessions.resume(child)
        await wait_until(engine, child, lambda view: view.status == "running")
        assert await run_turn(engine, child, "recall") == "kept: apple"
        await engine.sessions.stop(child)


async def test_a_snapshot_of_a_stopped_session_can_be_forked(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned_with_snapshot(engine, repo)
        await run_turn(engine, id, "remember pear")
        await engine.sessions.stop(id)
        with pytest.raises(SessionNotRunning, match="nothing to fork"):
            await engine.forks.fork(id, ForkRequest())
        (child,) = (await engine.forks.fork(id, ForkRequest(snapshot="early"))).children
        await wait_until(engine, child, lambda view: view.status == "running")
        assert await run_turn(engine, child, "recall") == "kept: apple"
        # A rewind resumes a stopped session.
        await engine.rewinds.rewind(id, "early")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        for one in (id, child):
            await engine.sessions.stop(one)


async def test_the_remaining_budget_is_divided(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo, budget_usd=4.0)
        forked = await engine.forks.fork(id, ForkRequest(count=3))
        views = [await engine.sessions.view(one) for one in (id, *forked.children)]
        assert [view.budget_usd for view in views] == [1.0, 1.0, 1.0, 1.0]
        runner = engine.sessions.find_runner(id)
        assert runner is not None and runner.door is not None
        assert runner.door._usage_recorder.budget.limit == 1.0
        for one in (id, *forked.children):
            await engine.sessions.stop(one)


async def test_concurrent_forks_divide_the_budget_one_after_the_other(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo, budget_usd=4.0)
        children: list[str] = []

        async def fork() -> None:
            children.extend((await engine.forks.fork(id, ForkRequest())).children)

        async with anyio.create_task_group() as group:
            group.start_soon(fork)
            group.start_soon(fork)
        budgets = [(await engine.sessions.view(one)).budget_usd or 0.0 for one in (id, *children)]
        assert sorted(budgets) == [1.0, 1.0, 2.0]
        await engine.sessions.stop(id)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        for one in (id, *children):
            await engine.sessions.stop(one)


async def test_a_running_turn_ends_in_the_children_and_continues_in_the_parent(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo, prompt="wait")
        await wait_until(engine, id, lambda view: view.turns == 1)
        (child,) = (await engine.forks.fork(id, ForkRequest(instructions=["remember pear"]))).children
        await answer(engine, child, 1)
        assert await run_turn(engine, child, "recall") == "kept: pear"
        await engine.sessions.interrupt(id)
        await answer(engine, id, 1)
        for one in (id, child):
            await engine.sessions.stop(one)


async def test_bad_requests_are_refused_before_anything_is_created(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        with pytest.raises(BadInput, match="2 instructions for 3 children"):
            await engine.forks.fork(id, ForkRequest(count=3, instructions=["a", "b"]))
        with pytest.raises(BadInput, match="not a valid snapshot name"):
            await engine.snapshots.take(id, "../x")
        with pytest.raises(NotFound, match="no snapshot 'nowhere'"):
            await engine.rewinds.rewind(id, "nowhere")
        await engine.snapshots.take(id, "one")
        with pytest.raises(BadInput, match="already a snapshot called one"):
            await engine.snapshots.take(id, "one")
        assert [snapshot.name for snapshot in await engine.snapshots.list(id)] == ["one"]
        assert len(await engine.sessions.views(over=True)) == 1
        await engine.snapshots.remove(id, "one")
        assert list(workspace(yard, id).snapshots.iterdir()) == []
        await engine.sessions.stop(id)


async def test_a_rewind_with_an_attached_terminal_needs_force(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned_with_snapshot(engine, repo)
        async with engine.sessions.guest(id) as guest:
            from hiveyard.core.commands import Command

            sit = "TERM=xterm script -qec 'tmux attach -t agent' /dev/null </dev/zero >/dev/null 2>&1"
            async with guest.open(Command(shell=sit)):
                with anyio.fail_after(30):
                    while not (await guest.run(Command(shell="tmux list-clients -t agent"))).stdout:  # noqa: ASYNC110
                        await anyio.sleep(0.05)
                with pytest.raises(SessionInUse, match="a terminal is attached to"):
                    await engine.rewinds.rewind(id, "early")
                await engine.rewinds.rewind(id, "early", force=True)
        await wait_until(engine, id, lambda view: view.status == "running")
        await engine.sessions.stop(id)


async def test_half_made_files_of_a_killed_daemon_are_removed(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned_with_snapshot(engine, repo)
    here = workspace(yard, id)
    (here.snapshots / ".half-p9" / "shared").mkdir(parents=True)
    (here.snapshots / "p8" / "shared").mkdir(parents=True)
    transient = [here.root / name for name in (".push-abc", ".dirty-abc", "shared.half")]
    for path in transient:
        (path / "deep").mkdir(parents=True)
    half = workspace(yard, "zzzzzzzzzz")
    half.root.mkdir()
    half.unfinished.touch()
    (half.root / "origin.git").mkdir()
    (half.root / "meta.json").write_text("{}")
    async with yard.open() as engine:
        assert [path for path in transient if path.exists()] == []
        with anyio.fail_after(30):
            while half.root.exists() or len(list(here.snapshots.iterdir())) > 1:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert [snapshot.name for snapshot in await engine.snapshots.list(id)] == ["early"]
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_a_rewind_is_kept_when_its_session_is_stopped_before_it_runs(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned_with_snapshot(engine, repo)
        await run_turn(engine, id, "run echo pear > fruit.txt")
        await run_turn(engine, id, "remember pear")
        await engine.rewinds.rewind(id, "early")
        await engine.sessions.stop(id)
        assert not (workspace(yard, id).shared / "repo" / "fruit.txt").exists()
        # No session needs the snapshot any more.
        await engine.snapshots.remove(id, "early")
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_a_rewind_is_kept_when_its_machine_does_not_start(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned_with_snapshot(engine, repo)
        await run_turn(engine, id, "remember pear")
        # A request that no user can make: it fails before there is a machine.
        await engine.sessions._r.event_log.record(id, BudgetSet(dollars=1e9))
        await engine.rewinds.rewind(id, "early")
        await wait_until(engine, id, lambda view: view.status == "stopped")
        await engine.sessions._r.event_log.record(id, BudgetSet(dollars=1.0))
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_a_rewind_that_fails_is_reported(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.snapshots.take(id, "early")
        await engine.rewinds.rewind(id, "early")
        here = workspace(yard, id)
        for lost in (here.snapshots, here.root / "shared.rewound"):
            shutil.rmtree(lost)
        view = await wait_until(engine, id, lambda view: view.status == "stopped")
        notices = [event.body.message for event in await events(engine, id, "notice")]  # type: ignore[union-attr]
        assert [message for message in notices if "not those of the snapshot" in message], (view, notices)


async def test_the_next_daemon_completes_a_journaled_rewind(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned_with_snapshot(engine, repo)
        await run_turn(engine, id, "remember pear")
        await engine.rewinds.rewind(id, "early")
        # The daemon ends here, before there is a machine.
    async with yard.open() as engine:
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_children_have_valid_branch_names(yard: Yard, repo: Path) -> None:
    git(repo, "branch", "hv/idea")
    async with yard.open() as engine:
        id = await spawned(engine, repo, name="work")
        forked = await engine.forks.fork(id, ForkRequest(count=2, name="idea"))
        views = [await engine.sessions.view(child) for child in forked.children]
        assert [view.branch for view in views] == ["hv/idea-2", "hv/idea-2-2"]
        for one in (id, *forked.children):
            await engine.sessions.stop(one)


async def test_the_next_daemon_starts_journaled_children(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        forked = await engine.forks.fork(id, ForkRequest(count=2, instructions=["remember pear"]))
    async with yard.open() as engine:
        for child in forked.children:
            await answer(engine, child, 1)
            assert await run_turn(engine, child, "recall") == "kept: apple pear"
        with anyio.fail_after(30):
            while list(workspace(yard, id).snapshots.iterdir()):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        for one in (id, *forked.children):
            await engine.sessions.stop(one)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of 4 MiB; mounting needs root."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_fails_the_snapshot_and_not_the_session(yard: Yard, repo: Path, small: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run head -c 8M /dev/urandom > large")
        workspace(yard, id).snapshots.symlink_to(small)
        with pytest.raises(NoSpace, match="no space to copy"):
            await engine.snapshots.take(id)
        assert list(small.iterdir()) == []
        assert await engine.snapshots.list(id) == []
        with pytest.raises(NoSpace):
            await engine.forks.fork(id, ForkRequest())
        assert len(await engine.sessions.views(over=True)) == 1
        await run_turn(engine, id, "remember apple")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_links_made_by_a_guest_are_not_followed(yard: Yard, repo: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, f"run ln -s {secret} link; ln -s {tmp_path} /session/state/up")
        await engine.snapshots.take(id, "planted")
        (child,) = (await engine.forks.fork(id, ForkRequest(snapshot="planted"))).children
        await wait_until(engine, child, lambda view: view.status == "running")
        assert (workspace(yard, child).shared / "repo" / "link").is_symlink()
        await engine.rewinds.rewind(id, "planted")
        await wait_until(engine, id, lambda view: view.status == "running")
        await run_turn(engine, child, "run cat link > got; true")
        assert (workspace(yard, child).shared / "repo" / "got").read_text() == ""
        assert secret.read_text() == "of the host"
        for one in (id, child):
            await engine.sessions.stop(one)


async def test_turn_snapshots_share_unchanged_files(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo, snapshots="turns")
        await run_turn(engine, id, "run head -c 4M /dev/urandom > large")
        await anyio.sleep(2.1)  # files that changed a moment ago do not count as unchanged
        await run_turn(engine, id, "run echo small > small")
        await run_turn(engine, id, "recall")
        with anyio.fail_after(30):
            while len(taken := await events(engine, id, "snapshot.taken")) < 3:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        sizes = [event.body.size for event in taken]  # type: ignore[union-attr]
        assert sizes[0] > 4 << 20
        assert sizes[1] < 8 << 20
        assert sizes[2] < 1 << 20
        await engine.sessions.stop(id)


async def test_the_latest_turn_snapshots_and_all_requested_ones_are_kept(yard: Yard, repo: Path) -> None:
    settings = replace(yard.settings.engine, turn_snapshots=2)
    async with Yard(yard.home, replace(yard.settings, engine=settings), {}).open() as engine:
        id = await spawned(engine, repo, snapshots="turns")
        await run_turn(engine, id, "remember apple")
        await engine.snapshots.take(id, "mine")
        for word in ("pear", "plum", "fig"):
            await run_turn(engine, id, f"remember {word}")
        with anyio.fail_after(30):
            while len(await events(engine, id, "snapshot.removed")) < 2:  # noqa: ASYNC110
                await anyio.sleep(0.05)
            while len(list(workspace(yard, id).snapshots.iterdir())) > 3:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert [one.name for one in await engine.snapshots.list(id)] == ["mine", "turn-3", "turn-4"]
        await engine.rewinds.rewind(id, "turn-3")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: apple pear plum"
        await engine.sessions.stop(id)


async def test_a_file_whose_name_is_no_text_is_in_snapshots_and_forks(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, r"run echo odd > $(printf '\377')")
        here = workspace(yard, id)
        odd = os.fsdecode(b"\xff")
        changed = (here.shared / "repo" / odd).stat().st_ctime
        await anyio.sleep(max(0.0, changed + 2.1 - time.time()))  # files that changed a moment ago have no mark
        first, second = [await engine.snapshots.take(id, name) for name in ("one", "two")]
        assert [snapshot.name for snapshot in await engine.snapshots.list(id)] == ["one", "two"]
        files = [snapshot_files.files_of(here, point.row.id) / "repo" / odd for point in (first, second)]
        assert files[0].read_text() == "odd\n"
        assert files[1].samefile(files[0])
        (child,) = (await engine.forks.fork(id, ForkRequest())).children
        await wait_until(engine, child, lambda view: view.status == "running")
        assert (workspace(yard, child).shared / "repo" / odd).read_text() == "odd\n"
        for one in (id, child):
            await engine.sessions.stop(one)


async def test_records_of_an_earlier_version_find_unchanged_files(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run head -c 4M /dev/urandom > large")
        here = workspace(yard, id)
        changed = (here.shared / "repo" / "large").stat().st_ctime
        await anyio.sleep(max(0.0, changed + 2.1 - time.time()))
        first = await engine.snapshots.take(id, "one")
        marks = here.snapshots / first.row.id / "marks"
        said = msgspec.msgpack.decode(marks.read_bytes())
        marks.write_bytes(msgspec.msgpack.encode({path.decode(): mark for path, mark in said.items()}))
        second = await engine.snapshots.take(id, "two")
        large = [snapshot_files.files_of(here, point.row.id) / "repo" / "large" for point in (first, second)]
        assert large[1].samefile(large[0])
        await engine.sessions.stop(id)


class _Untakable(Snapshots):
    async def take(
        self, id: str, name: str | None = None, *, temporary: bool = False, automatic: bool = False
    ) -> Point:
        raise ValueError("nobody thought of this")


async def test_an_unexpected_error_of_a_turn_snapshot_becomes_a_notice(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        snapshots = _Untakable(engine.snapshots._r, engine.sessions, engine.snapshots._group)
        TurnSnapshots(engine.snapshots._r, engine.sessions, snapshots, engine.snapshots._group)
        id = await spawned(engine, repo, snapshots="turns")
        assert await run_turn(engine, id, "remember apple") == "done: remember apple"
        with anyio.fail_after(30):
            while not (notices := await events(engine, id, "notice")):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        assert isinstance(notices[0].body, Notice)
        assert notices[0].body.message.endswith("the end of the turn: ValueError: nobody thought of this")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_the_journal_of_a_fork_is_complete(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        point = await engine.snapshots.take(id, "early")
        (child,) = (await engine.forks.fork(id, ForkRequest(snapshot="early"))).children
        (born,) = await events(engine, child, "session.forked")
        (taken,) = await events(engine, id, "snapshot.taken")
        assert isinstance(taken.body, SnapshotTaken)
        assert (taken.body.after_turn, taken.body.turn, taken.body.live) == (1, None, False)
        feed = workspace(yard, id).snapshots / point.row.id / "shared" / "state" / "puppet" / "feed.jsonl"
        assert isinstance(born.body, SessionForked)
        assert born.body.feed_offset == feed.stat().st_size
        assert born.body.conversation == taken.body.conversation != ""
        await wait_until(engine, child, lambda view: view.status == "running")
        for one in (id, child):
            await engine.sessions.stop(one)


# --- a session's directory -------------------------------------------------------------------------------------------


async def test_meta_json_follows_the_journal(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo, name="mine", base="main")
        file = workspace(yard, id).meta_file

        async def says(status: str) -> dict[str, object]:
            with anyio.fail_after(10):
                while (found := json.loads(file.read_text()))["status"] != status:  # noqa: ASYNC110
                    await anyio.sleep(0.02)
            return dict(found)

        found = await says("running")
        view = await engine.sessions.view(id)
        assert (found["version"], found["id"], found["name"], found["repo"]) == (2, id, "mine", str(repo))
        assert (found["ref"], found["agent"], found["provider"]) == ("main", "puppet", "bubblewrap")
        assert found["created"] == view.created_at
        assert workspace(yard, id).keys().placeholder not in file.read_text()
        await engine.sessions.stop(id)
        assert (await says("stopped"))["reason"] == "stopped"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "meta.json is invalid"),
        ('{"version": 2}', "missing required field"),
        ('{"version": 99}', "version 99"),
        ("", "meta.json is invalid"),
    ],
)
async def test_an_invalid_meta_json_is_reported_and_kept(yard: Yard, repo: Path, text: str, said: str) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.stop(id)
        await anyio.sleep(0.2)
    file = workspace(yard, id).meta_file
    file.write_text(text)
    async with yard.open() as engine:
        with pytest.raises(Exception, match=said):
            await engine.sessions.resume(id)
        assert file.read_text() == text


@pytest.mark.parametrize("missing", ["shared", "origin.git", "shared/repo", "shared/state"])
async def test_an_incomplete_session_directory_is_reported(
    yard: Yard, repo: Path, tmp_path: Path, missing: str
) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "run echo pear > fruit.txt")
        await engine.sessions.stop(id)
        before = (await engine.source(id)).head
        where = workspace(yard, id).root / missing
        where.rename(workspace(yard, id).root / "elsewhere")
        with pytest.raises(SessionDamaged, match=missing):
            await engine.sessions.resume(id)
        with pytest.raises(SessionDamaged, match=missing):
            await engine.exports.export(id, tmp_path / "it.tar")
        assert not (tmp_path / "it.tar").exists()
        (workspace(yard, id).root / "elsewhere").rename(where)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await run_turn(engine, id, "recall") == "kept: "
        await engine.sessions.stop(id)
        assert (await engine.source(id)).head == before


async def test_missing_commits_are_reported_by_each_verb_that_needs_them(
    yard: Yard, repo: Path, tmp_path: Path
) -> None:
    async with yard.open() as engine:
        id = await spawned_with_snapshot(engine, repo)
        await run_turn(engine, id, "run echo pear > fruit.txt")
        await engine.sessions.stop(id)
        objects = workspace(yard, id).origin / "objects"
        shutil.rmtree(objects)
        objects.mkdir()
        for asking in (
            lambda: engine.sessions.resume(id),
            lambda: engine.forks.fork(id, ForkRequest(snapshot="early")),
            lambda: engine.rewinds.rewind(id, "early"),
            lambda: engine.exports.export(id, tmp_path / "it.tar"),
            lambda: engine.source(id),
            lambda: engine.comparisons.compare([id]),
        ):
            with pytest.raises(SessionDamaged, match=r"origin\.git lacks commit"):
                await asking()
        assert (await engine.sessions.view(id)).status == "stopped"


@pytest.mark.parametrize("text", ["", "{", '{"version": 99}'])
async def test_an_invalid_meta_json_does_not_end_a_running_session(yard: Yard, repo: Path, text: str) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        await anyio.sleep(0.2)
    workspace(yard, id).meta_file.write_text(text)
    async with yard.open() as engine:
        assert await run_turn(engine, id, "recall") == "kept: apple"
        assert len(await events(engine, id, "machine.booting")) == 1
        await engine.sessions.stop(id)


async def test_an_unreadable_meta_json_is_reported(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await engine.sessions.stop(id)
        await anyio.sleep(0.2)
        file = workspace(yard, id).meta_file
        file.unlink()
        file.mkdir()
        with pytest.raises(SessionDamaged, match=r"meta\.json cannot be read: Is a directory"):
            await engine.sessions.resume(id)
        file.rmdir()


async def test_a_directory_of_version_1_is_upgraded_and_keeps_its_key(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        await engine.sessions.stop(id)
        await anyio.sleep(0.2)
    here = workspace(yard, id)
    here.door_file.unlink()
    old = {
        "version": 1,
        "id": id,
        "slug": "x",
        "repo": "r",
        "agent": "puppet",
        "placeholder": "hv-k",
        "created_at": 1.0,
    }
    here.meta_file.write_text(json.dumps(old))
    async with yard.open() as engine:
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")
        assert here.keys().placeholder == "hv-k"
        assert "hv-k" not in here.meta_file.read_text()
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.sessions.stop(id)


async def test_a_spent_budget_cannot_be_divided(yard: Yard, repo: Path) -> None:
    from hiveyard.core.events import ModelCalled
    from hiveyard.core.usage import Usage

    async with yard.open() as engine:
        id = await spawned(engine, repo, budget_usd=1.0)
        called = ModelCalled(protocol="anthropic", model="m", status=200, usage=Usage(cost_usd=1.5), seconds=1.0)
        await engine.snapshots._r.event_log.record(id, called)
        with pytest.raises(BudgetSpent, match="nothing to divide"):
            await engine.forks.fork(id, ForkRequest())
        await engine.sessions.stop(id)


def test_a_copy_error_names_the_path() -> None:
    told = copy_error("bee", PermissionError(13, "Permission denied", "work/a\x1b[2Jb"))
    assert told.message == "the files of bee cannot be copied: Permission denied: work/ab"
    assert copy_error("bee", OSError("odd")).message == "the files of bee cannot be copied: odd"
