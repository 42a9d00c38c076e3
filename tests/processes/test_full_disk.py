"""The state of a process stays known when output fills the disk."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessStatus, Restart
from hiveyard.core.errors import NoSuchProcess, ProcessNotStarted
from hiveyard.core.ports import Guest
from hiveyard.processes.detached import Detached
from tests.processes.steps import PATIENCE, ended, spec
from tests.processes.test_limits_contract import FAT

pytestmark = pytest.mark.anyio

DISK = "/dev/shm"
"""A file system of memory that every machine has, as small as a quarter or a half of what it has of that."""
TAKE_ALL = f"head -c 1T /dev/zero >>{DISK}/all 2>/dev/null"
_BLOCK = 4096


@pytest.fixture
async def manager(manager: Detached, guest: Guest, name: str) -> AsyncIterator[Detached]:
    """It keeps what it knows on a disk that can be filled."""
    yield type(manager)(f"{DISK}/{name}")
    await guest.remove_tree(f"{DISK}/all")
    await guest.remove_tree(f"{DISK}/{name}")


async def in_shell(guest: Guest, script: str) -> None:
    await guest.run(Command(shell=script), timeout=PATIENCE)


async def test_an_exit_code_is_kept(manager: Detached, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, f"{TAKE_ALL}; exit 7"))
    info = await ended(manager, guest, name)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, 7)
    assert info.pid is not None and info.ended_at is not None


async def test_each_run_is_known(manager: Detached, guest: Guest, name: str) -> None:
    pids = f"/session/{name}.pids"
    again = Restart(max_restarts=2, min_uptime=1000)
    await manager.start(guest, spec(name, f"echo $$ >>{pids}; {TAKE_ALL}; exit 7", restart=again))
    info = await ended(manager, guest, name)
    assert (info.exit_code, info.restarts) == (7, 2)
    assert info.pid == int((await guest.read(pids)).split()[-1])


async def test_being_killed_for_memory_is_told(manager: Detached, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, f"{TAKE_ALL}; {FAT}", memory_mib=40))
    info = await ended(manager, guest, name)
    assert (info.exit_code, info.memory_kills) == (137, 1)


async def test_a_process_runs_to_an_end_that_is_kept_or_is_not_started(
    manager: Detached, guest: Guest, name: str
) -> None:
    """However many blocks are left."""
    started = []
    for blocks in range(0, 16, 3):
        one = f"{name}-{blocks}"
        await in_shell(guest, f"head -c {blocks * _BLOCK} /dev/zero >{DISK}/left; {TAKE_ALL}; rm {DISK}/left")
        try:
            await manager.start(guest, spec(one, f"echo x >>/session/{one}.ran; exit 3"))
        except ProcessNotStarted as error:
            assert "No space left on device" in str(error)
            with pytest.raises(NoSuchProcess):
                await manager.get(guest, one)
            assert not await guest.exists(f"/session/{one}.ran")
        else:
            assert (await ended(manager, guest, one)).exit_code == 3
            started.append(blocks)
        await in_shell(guest, f"rm {DISK}/all")
        await manager.start(guest, spec(one, f"echo x >>/session/{one}.ran; exit 3"))
        assert (await ended(manager, guest, one)).exit_code == 3
        assert await guest.read(f"/session/{one}.ran") == b"x\n"
        await manager.remove(guest, one)
    assert started


async def test_a_stop_ends_it_for_good(manager: Detached, guest: Guest, name: str) -> None:
    policy = Restart(max_restarts=1000, min_uptime=0)
    await manager.start(guest, spec(name, f"{TAKE_ALL}; : >/session/{name}.full; sleep 1000", restart=policy))
    with anyio.fail_after(PATIENCE):
        while not await guest.exists(f"/session/{name}.full"):  # noqa: ASYNC110
            await anyio.sleep(0.05)
    info = await manager.stop(guest, name)
    assert (info.status, info.exit_code, info.restarts) == (ProcessStatus.EXITED, 130, 0)
