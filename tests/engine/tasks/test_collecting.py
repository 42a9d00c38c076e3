"""Collecting a task's work comes to an end: by its time limit, by `hv cancel`, and in spite of a sparse file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.events import Notice
from hiveyard.engine.engine import Engine
from tests.engine.conftest import Yard, asked, done, told

pytestmark = pytest.mark.anyio
# A filter that never ends; its number identifies the process.
SLOW = (
    "echo x > x.txt; git config filter.slow.clean 'touch ../held; sleep 98765'; echo '* filter=slow' > .gitattributes"
)


async def notices(engine: Engine, id: str) -> str:
    return "\n".join(event.body.message for event in await told(engine, id) if isinstance(event.body, Notice))


async def programs(engine: Engine, id: str) -> str:
    """Return the command lines of all processes in the machine of a task."""
    async with engine._r.providers["bubblewrap"].guest(f"hv-{id}") as guest:
        done = await guest.run(
            Command(shell="for i in /proc/[0-9]*; do tr '\\0' ' ' <$i/cmdline; echo; done"), timeout=20
        )
    return done.stdout.decode()


async def held(yard: Yard, id: str) -> None:
    """Wait until the filter blocks collecting."""
    with anyio.fail_after(60):
        while not (yard.paths.sessions / id / "shared/held").exists():  # noqa: ASYNC110
            await anyio.sleep(0.05)


async def test_a_sparse_file_of_a_terabyte_does_not_hold_a_task(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        with anyio.fail_after(60):
            id = await engine.submit(asked(repo, "truncate -s 1T s.bin; echo x > x.txt", timeout=10.0))
            report = await done(engine, id)
        assert (report.status, report.commits, report.diffstat.files) == ("completed", 1, 1)
        assert "a file of more than 512 MiB left out of the result: s.bin (1048576 MiB)" in await notices(engine, id)


async def test_the_size_above_which_a_file_is_left_out_is_a_setting(yard: Yard, repo: Path) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, collect_file_mib=1))
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, "truncate -s 2M large; truncate -s 1M small"))
        report = await done(engine, id)
        assert (report.status, report.diffstat.files) == ("completed", 1)
        assert "more than 1 MiB left out of the result: large (2 MiB)" in await notices(engine, id)


async def test_collecting_that_takes_too_long_ends_with_the_guests_git(yard: Yard, repo: Path) -> None:
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, collect_timeout=2.0))
    async with yard.open() as engine:
        with anyio.fail_after(60):
            id = await engine.submit(asked(repo, SLOW, keep=True))
            report = await done(engine, id)
        assert report.error is not None
        assert (report.status, report.commits, report.error.code) == ("failed", 0, "repository.collect_timeout")
        assert "98765" not in await programs(engine, id)
        said = await notices(engine, id)
        assert "collecting took longer than 2s" in said
        assert str(yard.paths.sessions / id / "shared") in said
        await engine.remove(id, force=False)


async def test_cancel_ends_collecting_with_the_guests_git(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, SLOW, keep=True))
        await held(yard, id)
        assert "98765" in await programs(engine, id)
        with anyio.fail_after(40):
            await engine.cancel(id)
            report = await done(engine, id)
        assert (report.status, report.exit_code, report.commits) == ("cancelled", 130, 0)
        assert "98765" not in await programs(engine, id)
        assert "cancelled while the work was collected" in await notices(engine, id)
        await engine.remove(id, force=False)


async def test_a_second_cancel_ends_collecting_of_what_a_cancelled_agent_left(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await engine.submit(asked(repo, f"{SLOW}; touch ../begun; sleep 600"))
        with anyio.fail_after(60):
            while not (yard.paths.sessions / id / "shared/begun").exists():  # noqa: ASYNC110
                await anyio.sleep(0.05)
        await engine.cancel(id)
        await held(yard, id)
        with anyio.fail_after(40):
            await engine.cancel(id)
            report = await done(engine, id)
        assert (report.status, report.commits) == ("cancelled", 0)
