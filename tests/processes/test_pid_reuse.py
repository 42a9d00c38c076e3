"""A number that a process of ours had, and a stranger has now."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.machines import Capabilities
from hiveyard.core.ports import Guest, Stream
from hiveyard.machines.shared.attached import attached
from hiveyard.machines.shared.shell import ShellGuest
from hiveyard.processes.detached import Detached
from tests.processes.steps import PATIENCE, spec

pytestmark = pytest.mark.anyio

_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
_LAST = Path("/proc/sys/kernel/ns_last_pid")


class Numbered:
    """An Exec in a PID namespace of its own, in which one may say what number comes next."""

    def __init__(self, holder: int) -> None:
        self._enter = ("nsenter", "-t", str(holder), "-U", "-m", "-p", "--preserve-credentials")

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        async with attached([word.encode() for word in (*self._enter, *argv)], _ENV) as stream:
            yield stream


@pytest.fixture
async def numbered() -> AsyncIterator[Guest]:
    if not _LAST.exists():
        pytest.skip("this kernel lets nobody choose a process id (CONFIG_CHECKPOINT_RESTORE)")
    holder = "read -r pid _ </proc/self/stat; mount -t proc proc /proc; echo $pid; cat"
    words = ("unshare", "-U", "-r", "-m", "-p", "--fork", "--kill-child", "--", "bash", "-c", holder)
    async with attached([word.encode() for word in words], _ENV) as stream:
        yield ShellGuest(Numbered(int(await stream.receive())), Capabilities())


async def test_a_stop_kills_no_stranger(numbered: Guest, tmp_path: Path) -> None:
    """One of ours ends of its SIGINT, another does not: while the stop waits for that one, the number of the first is
    given again."""
    manager = Detached(str(tmp_path))
    waits = "exec 5<> <(:); trap '' INT; env --default-signal=INT sleep 1000 & echo $!; while :; do read -r -u 5; done"
    await manager.start(numbered, spec("ours", waits))
    with anyio.fail_after(PATIENCE):
        while not (said := await manager.logs(numbered, "ours")):  # noqa: ASYNC110
            await anyio.sleep(0.05)
    number = int(said)
    async with anyio.create_task_group() as group:
        group.start_soon(partial(manager.stop, numbered, "ours", grace=4))
        with anyio.fail_after(PATIENCE):
            while await numbered.exists(f"/proc/{number}"):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        stranger = f"echo {number - 1} >{_LAST}; sleep 2000 >/dev/null 2>&1 </dev/null & echo $!"
        assert int((await numbered.run(Command(shell=stranger, cwd="/"))).stdout) == number
    assert (await manager.get(numbered, "ours")).exit_code == 137
    assert b" (sleep) S " in await numbered.read(f"/proc/{number}/stat")
