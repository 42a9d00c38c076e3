"""Errors of a program that was started but failed before it was ready."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hiveyard.core.errors import BootFailed, HiveyardError, MachineLost, NoSpace
from hiveyard.kit import process
from hiveyard.machines.qemu.launch import Handles, NotLoaded, StateRefused, launched
from hiveyard.machines.qemu.user import User, builder

pytestmark = pytest.mark.anyio
CAUSE = MachineLost("the server of /session does not answer")


async def error_of(script: str, cause: MachineLost = CAUSE) -> HiveyardError:
    with Handles() as handles:
        async with launched(["sh", "-c", script], handles, cwd=Path("/"), outlive=False) as process:
            return await process.error("t1", cause)


async def test_the_error_of_a_running_program_is_the_cause() -> None:
    error = await error_of("echo a warning >&2; exec sleep 60")
    assert isinstance(error, BootFailed)
    assert error.message == "QEMU for t1 did not start: the server of /session does not answer"


@pytest.mark.parametrize(
    ("script", "kind", "words"),
    [
        ("echo no such machine >&2; exit 1", BootFailed, "did not start: no such machine"),
        ("exit 1", BootFailed, "it exited and printed nothing"),
        ("echo No space left on device >&2; exit 1", NoSpace, "No space left"),
    ],
)
async def test_the_error_of_an_exited_program_has_its_message(
    script: str, kind: type[HiveyardError], words: str
) -> None:
    error = await error_of(script)
    assert isinstance(error, kind)
    assert words in error.message


async def test_the_error_of_a_program_that_did_not_load_its_state_has_its_message() -> None:
    error = await error_of("echo load of migration failed >&2; exit 1", NotLoaded("the frozen state does not load"))
    assert isinstance(error, StateRefused)
    assert error.message == "QEMU for t1: the frozen state does not load: load of migration failed"


async def test_a_host_with_a_full_process_table_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setsid = tmp_path / "setsid"
    setsid.write_text("#!/bin/sh\necho 'setsid: fork: Resource temporarily unavailable' >&2; exit 1\n")
    setsid.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with Handles() as handles, pytest.raises(BootFailed, match="fork: Resource temporarily unavailable"):
        async with launched(["true"], handles, cwd=Path("/"), outlive=True):
            raise AssertionError("it was started")


async def test_a_program_that_cannot_be_started_is_reported(tmp_path: Path) -> None:
    (tmp_path / "qemu").touch(mode=0o644)
    with Handles() as handles, pytest.raises(BootFailed, match="qemu could not be started: Permission denied"):
        async with launched([str(tmp_path / "qemu")], handles, cwd=Path("/"), outlive=False):
            raise AssertionError("it was started")


@pytest.mark.parametrize(
    "user", [User(None, None), builder(first=61_000)], ids=["the daemon's user", "a user of its own"]
)
async def test_the_number_of_host_processes_of_a_guest_is_limited(user: User) -> None:
    done = await process.run([*user.prefix(), "bash", "-c", "ulimit -u; id -u"])
    assert done.stdout.split() == [b"512", b"1000"], done.stderr
