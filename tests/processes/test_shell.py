"""The process manager of the foreground: what it keeps of the contract, and what it does not promise."""

from __future__ import annotations

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessInfo, ProcessSpec, ProcessStatus, Restart
from hiveyard.core.errors import BadInput, NoSuchProcess, ProcessNotStarted
from hiveyard.core.ports import Guest
from hiveyard.processes.shell import Shell
from tests.processes.steps import PATIENCE, output, spec, until_gone

pytestmark = pytest.mark.anyio


@pytest.fixture
def manager() -> Shell:
    return Shell()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137)])
async def test_a_start_returns_when_it_has_ended(
    manager: Shell, guest: Guest, name: str, script: str, code: int
) -> None:
    info = await manager.start(guest, spec(name, f"echo said; sleep 0.3; {script}"))
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, code)
    assert await output(manager, guest, name) == b"said\n"
    await manager.remove(guest, name)
    with pytest.raises(NoSuchProcess):
        await manager.get(guest, name)


async def test_starting_twice_starts_once_and_both_wait(manager: Shell, guest: Guest, name: str) -> None:
    infos: list[ProcessInfo] = []

    async def start() -> None:
        infos.append(await manager.start(guest, spec(name, f"echo x >>/session/{name}.count; sleep 1; exit 4")))

    async with anyio.create_task_group() as group:
        group.start_soon(start)
        group.start_soon(start)
    assert [info.exit_code for info in infos] == [4, 4]
    assert await guest.read(f"/session/{name}.count") == b"x\n"


async def test_it_is_started_again_and_talked_to_meanwhile(manager: Shell, guest: Guest, name: str) -> None:
    again = Restart(max_restarts=1, min_uptime=1000)
    async with anyio.create_task_group() as group:
        group.start_soon(
            manager.start, guest, spec(name, "read -r line; echo got $line; exit 1", inbox=True, restart=again)
        )
        with anyio.fail_after(PATIENCE):
            while name not in {info.name for info in await manager.list(guest)}:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        for word in (b"one\n", b"two\n"):
            await manager.send(guest, name, word.decode(), word)
    assert await output(manager, guest, name) == b"got one\ngot two\n"
    assert (await manager.get(guest, name)).restarts == 1


async def test_a_cancelled_start_ends_the_process_and_all_that_it_started(
    manager: Shell, guest: Guest, name: str
) -> None:
    script = f"(setsid sleep 1000.625 &); echo >/session/{name}.on; sleep 1000.625"
    async with anyio.create_task_group() as group:
        group.start_soon(manager.start, guest, spec(name, script))
        with anyio.fail_after(PATIENCE):
            while not await guest.exists(f"/session/{name}.on"):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    await until_gone(guest, "sleep 1000.625")
    assert (await manager.get(guest, name)).status is ProcessStatus.LOST


async def test_what_cannot_start_is_an_error_and_leaves_nothing(manager: Shell, guest: Guest, name: str) -> None:
    with pytest.raises(ProcessNotStarted):
        await manager.start(guest, ProcessSpec(name=name, command=Command(argv=("no-such-program",))))
    with pytest.raises(NoSuchProcess):
        await manager.get(guest, name)
    with pytest.raises(BadInput, match="one instance"):
        await manager.start(guest, spec(name, "true", instances=2))
    with pytest.raises(BadInput, match="no terminal"):
        await manager.start(guest, spec(name, "true", terminal=True))
