"""Run an engine for tests: it leaves nothing behind, and machines are lost when it stops."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import MachineLost, ProviderUnavailable
from hiveyard.core.machines import MachineSpec, MachineStatus, Shape
from hiveyard.machines.docker import DockerProvider, DockerSettings
from tests.contract.rootfs import small_image
from tests.support.dockerd import own_engine

pytestmark = [pytest.mark.anyio, pytest.mark.real]

SMALL = Shape(memory_mib=128)


@pytest.fixture
async def scratch() -> AsyncIterator[Path]:
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        assert not os.environ.get("CI"), "CI has dockerd and is root"
        pytest.skip("only root can start an engine, and dockerd must be installed")
    with tempfile.TemporaryDirectory(prefix="hvt-") as name:
        yield Path(name)


async def test_an_engine_that_goes_away_under_a_command_is_a_lost_machine(scratch: Path) -> None:
    image, session = small_image(scratch), scratch / "session"
    spec = MachineSpec(image=image, shape=SMALL, session=session)
    lost: list[str] = []
    async with anyio.create_task_group() as group:

        async def work(provider: DockerProvider) -> None:
            async with provider.guest("m1") as guest:
                with pytest.raises(MachineLost) as error:
                    await guest.run(Command(shell="echo > /session/running; sleep 1000"))
                lost.append(error.value.message)

        async with own_engine(scratch / "data", scratch / "run") as socket:
            provider = DockerProvider(scratch / "state", DockerSettings(socket=str(socket)))
            await provider.prepare(image, SMALL)
            await provider.boot("m1", spec)
            group.start_soon(work, provider)
            while not (session / "running").exists():  # noqa: ASYNC110 (the guest creates it)
                await anyio.sleep(0.02)
    assert len(lost) == 1
    with pytest.raises(ProviderUnavailable):
        await provider.names()
    async with own_engine(scratch / "data", scratch / "run") as socket:
        provider = DockerProvider(scratch / "state", DockerSettings(socket=str(socket)))
        assert (await provider.get("m1")).status is MachineStatus.ERROR
        await provider.boot("m1", spec)
        async with provider.guest("m1") as guest:
            assert (await guest.run(Command(argv=("true",)))).ok
        await provider.terminate("m1")


async def test_an_engine_of_our_own_leaves_no_process_and_no_mount(scratch: Path) -> None:
    image = small_image(scratch)
    async with own_engine(scratch / "data", scratch / "run") as socket:
        provider = DockerProvider(scratch / "state", DockerSettings(socket=str(socket)))
        await provider.prepare(image, SMALL)
        await provider.boot("m1", MachineSpec(image=image, shape=SMALL))
        assert str(scratch) in Path("/proc/self/mountinfo").read_text()
    assert str(scratch) not in Path("/proc/self/mountinfo").read_text()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes()
        except OSError:
            continue
        assert bytes(scratch) not in line, f"{file.parent.name} is left: {line!r}"
