"""Live snapshots of real VMs: they contain memory and processes, and agents continue mid-thought."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard import config
from hiveyard.core.commands import Command
from hiveyard.engine.engine import Engine
from hiveyard.engine.settings import EngineSettings
from hiveyard.engine.snapshots.fork import ForkRequest
from hiveyard.paths import default_paths
from tests.engine.conftest import Yard
from tests.engine.yards import answer, events, run_turn, spawned, wait_until
from tests.support.leaks import searched_directory
from tests.support.puppet import register

pytestmark = [pytest.mark.anyio, pytest.mark.real]


@pytest.fixture
def vms() -> Iterator[Yard]:
    """Yield a yard of VMs that uses images and templates of the user's cache."""
    register()
    settings = config.Settings(engine=EngineSettings(provider="qemu", disk_reserve_mib=1))
    with searched_directory() as scratch:
        yard = Yard(scratch / "home", settings, {})
        yard.paths = yard.paths._replace(cache=default_paths().cache)
        yield yard


async def said(engine: Engine, id: str, script: str) -> str:
    async with engine.sessions.guest(id) as guest:
        return (await guest.run(Command(shell=script))).stdout.decode().strip()


async def test_children_continue_a_running_turn_with_the_same_processes(vms: Yard, repo: Path) -> None:
    async with vms.open() as engine:
        id = await spawned(engine, repo, budget_usd=3.0)
        await run_turn(engine, id, "remember apple")
        await said(
            engine, id, "echo in-memory > /dev/shm/kept; echo on-disk > ~/kept; echo shared > /session/repo/kept"
        )
        turn = await engine.sessions.send(id, "wait")
        await wait_until(engine, id, lambda view: view.turns == 2)
        forked = await engine.forks.fork(id, ForkRequest(instructions=["remember pear", "remember plum"], name="idea"))
        assert forked.live
        assert forked.notice == ""
        parent = await said(engine, id, "cat /session/state/puppet/pid")
        for number, child in enumerate(forked.children):
            await wait_until(engine, child, lambda view: view.status == "running")
            # The running turn continues in the same process, on the same terminal.
            assert await said(
                engine, child, "cat /session/state/puppet/pid; echo; tmux capture-pane -pt agent | grep wait"
            ) == (f"{parent}\n<wait>")
            kept = await said(engine, child, "cat /dev/shm/kept ~/kept /session/repo/kept; hostname")
            assert kept.split() == ["in-memory", "on-disk", "shared", f"hv-{child}"]
            branch = await said(engine, child, "git -C /session/repo branch --show-current")
            assert branch == ("hv/idea" if number == 0 else "hv/idea-2")
            await engine.sessions.interrupt(child)
            assert await answer(engine, child, 1) == "stopped"
            await answer(engine, child, 2)
        first, second = forked.children
        assert await run_turn(engine, first, "recall") == "kept: apple pear"
        assert await run_turn(engine, second, "recall") == "kept: apple plum"
        # No child sees what another one writes, and the parent got no prompt.
        await said(engine, first, "echo first > /session/repo/kept; echo first > ~/kept")
        assert await said(engine, second, "cat ~/kept /session/repo/kept") == "on-disk\nshared"
        assert not [event for event in await events(engine, id, "turn.ended") if event.turn == turn]
        await engine.sessions.interrupt(id)
        await answer(engine, id, turn)
        assert await run_turn(engine, id, "recall") == "kept: apple"
        with anyio.fail_after(60):
            while await engine.snapshots._r.providers["qemu"].snapshots():  # type: ignore[attr-defined]  # noqa: ASYNC110
                await anyio.sleep(0.1)
        for one in (id, first, second):
            await engine.sessions.stop(one)


async def test_a_rewind_restores_memory_and_processes(vms: Yard, repo: Path) -> None:
    async with vms.open() as engine:
        id = await spawned(engine, repo, snapshots="turns")
        await said(engine, id, "echo none > /dev/shm/kept")
        await run_turn(engine, id, "remember apple")
        # As a turn, because no prompt is sent until the snapshot of the previous turn is complete.
        await run_turn(engine, id, "run echo pear > fruit.txt; echo one > /dev/shm/kept")
        await run_turn(engine, id, "remember cherry")
        await said(engine, id, "echo two > /dev/shm/kept; pkill -f nothing-like-this; sleep 1000 >/dev/null 2>&1 &")
        pid = await said(engine, id, "cat /session/state/puppet/pid")
        await engine.rewinds.rewind(id, "turn-2")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await said(engine, id, "cat /dev/shm/kept /session/state/puppet/pid") == f"one\n{pid}"
        assert await said(engine, id, "pgrep -c sleep") == "0"
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.rewinds.rewind(id, "turn-1")
        await wait_until(engine, id, lambda view: view.status == "running")
        assert await said(engine, id, "cat /dev/shm/kept /session/state/puppet/pid") == f"none\n{pid}"
        assert await said(engine, id, "pgrep -c sleep") == "0"
        assert "fruit" not in await said(engine, id, "ls /session/repo")
        assert await run_turn(engine, id, "recall") == "kept: apple"
        await engine.remove(id, force=True)
        assert await engine.snapshots._r.providers["qemu"].snapshots() == set()  # type: ignore[attr-defined]


async def test_the_next_daemon_completes_a_fork(vms: Yard, repo: Path) -> None:
    async with vms.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        (child,) = (await engine.forks.fork(id, ForkRequest(instructions=["remember pear"]))).children
        # The daemon ends here, while the child's machine is being created.
    async with vms.open() as engine:
        await answer(engine, child, 1)
        assert await run_turn(engine, child, "recall") == "kept: apple pear"
        for one in (id, child):
            await engine.remove(one, force=True)
        with anyio.fail_after(60):
            while await engine.snapshots._r.providers["qemu"].snapshots():  # type: ignore[attr-defined]  # noqa: ASYNC110
                await anyio.sleep(0.1)


async def test_a_live_snapshot_taken_under_other_settings_is_usable(vms: Yard, repo: Path) -> None:
    async with vms.open() as engine:
        id = await spawned(engine, repo)
        await run_turn(engine, id, "remember apple")
        await said(engine, id, "echo in-memory > /dev/shm/kept")
        await engine.snapshots.take(id, "early")
    vms.settings = replace(vms.settings, engine=replace(vms.settings.engine, memory_mib=1024, cpus=1))
    async with vms.open() as engine:
        (child,) = (await engine.forks.fork(id, ForkRequest(snapshot="early"))).children
        await engine.sessions.stop(id)
        await engine.rewinds.rewind(id, "early")
        for one in (child, id):
            view = await wait_until(engine, one, lambda view: view.status in ("running", "stopped"))
            assert view.status == "running", view
            assert await said(engine, one, "cat /dev/shm/kept") == "in-memory"
            assert await run_turn(engine, one, "recall") == "kept: apple"
            await engine.remove(one, force=True)
