"""A disk that is full to its last byte."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hiveyard.core.errors import NoSpace
from hiveyard.engine.sessions.request import SpawnRequest
from tests.engine.conftest import Yard, asked, done
from tests.support.puppet import NAME, register

pytestmark = pytest.mark.anyio


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 64 MiB for the installation."""
    if os.geteuid() != 0:
        pytest.skip("mounting a disk needs root")
    place = tmp_path / "home"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def stuff(path: Path) -> None:
    """Fill the disk to its last byte."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC


async def test_a_task_without_disk_space_is_refused_and_leaves_nothing(yard: Yard, repo: Path, disk: Path) -> None:
    register()
    async with yard.open() as engine:
        stuff(disk / "junk")
        with pytest.raises(NoSpace, match="cannot be created: No space left on device"):
            await engine.submit(asked(repo, "true"))
        with pytest.raises(NoSpace, match="cannot be created: No space left on device"):
            await engine.sessions.spawn(SpawnRequest(repo=str(repo), agent=NAME))
        assert list(yard.paths.sessions.iterdir()) == []
        (disk / "junk").unlink()


@pytest.mark.usefixtures("file_journal")
async def test_a_task_that_filled_the_disk_can_be_removed(yard: Yard, repo: Path, disk: Path) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, disk_reserve_mib=4))
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "echo three > c.txt"))
        assert (await done(engine, id)).status == "completed"
        workspace = yard.paths.sessions / id
        stuff(workspace / "shared" / "junk")
        assert os.statvfs(disk).f_bavail == 0
        await engine.remove(id, force=False)
        assert not workspace.exists()
        assert os.statvfs(disk).f_bavail > 0
        # The space that was reserved for this is available again.
        again = await engine.submit(asked(repo, "echo three > c.txt"))
        assert (await done(engine, again)).status == "completed"
        assert (yard.paths.data / "ballast").stat().st_blocks * 512 == 4 << 20
