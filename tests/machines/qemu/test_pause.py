"""The clock of a machine that was paused for a moment is set, with a time limit.

QEMU and the guest are replaced by sockets that give the same answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc
import pytest

from hiveyard.core.machines import MachineStatus
from hiveyard.machines.qemu import pause
from hiveyard.machines.qemu.record import QemuDirectory, Record, read
from hiveyard.machines.qemu.snapshot_writer import SnapshotWriter
from hiveyard.machines.qemu.vm import Vm, boot_id
from hiveyard.machines.qemu.wire import qmp
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


class Guest:
    """A guest that records what happened to it; `running` is the state that QEMU reports."""

    def __init__(self, directory: QemuDirectory, *, running: bool, answer: bytes) -> None:
        self.directory = directory
        self.running = running
        self.answer = answer
        self.steps: list[str] = []

    def qmp(self, line: bytes) -> bytes:
        command = json.loads(line)["execute"]
        if command in ("stop", "cont"):
            self.running = command == "cont"
            self.steps.append(command)
        status = {"status": "running" if self.running else "paused"}
        return json.dumps({"return": status}).encode() + b"\n"

    def become(self, line: bytes) -> bytes:
        if line in (b"sync\n", b"thaw\n"):
            self.steps.append(line.decode().strip())
            return b"yes\n"
        assert abs(float(line) - time.time()) < 60
        self.steps.append("time")
        return self.answer


@asynccontextmanager
async def listening(path: Path, answer: Callable[[bytes], bytes], greeting: bytes = b"") -> AsyncIterator[None]:
    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(greeting)
            async for line in stream:
                await stream.send(answer(line))

    async with await anyio.create_unix_listener(path) as listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, serve)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def fake_guest(*, running: bool, answer: bytes = b"yes\n") -> AsyncIterator[Guest]:
    with searched_directory() as root:
        guest = Guest(QemuDirectory(root), running=running, answer=answer)
        async with (
            listening(guest.directory.qmp, guest.qmp, b'{"QMP": {}}\n'),
            listening(guest.directory.become, guest.become),
        ):
            yield guest


def record(halted: Vm | None = None) -> Record:
    return Record(name="m", image="i", status=MachineStatus.READY, created_at=0.0, halted=halted)


async def test_a_machine_whose_pausing_process_was_killed_is_resumed_and_its_clock_is_set() -> None:
    async with fake_guest(running=False) as guest:
        resumed = await pause.resume_if_abandoned(record(Vm(1 << 30, 0, boot_id())), guest.directory)
        assert guest.steps == ["cont", "time", "thaw"]
        assert resumed.halted is None


async def _paused(guest: Guest) -> None:
    writer = SnapshotWriter(record(), guest.directory, guest.directory.root, guest.directory.root, None)
    async with qmp(guest.directory.qmp) as wire, writer._paused(wire):
        guest.steps.append("taken")


async def test_the_clock_of_a_running_machine_is_set_after_its_snapshot() -> None:
    async with fake_guest(running=True) as guest:
        await _paused(guest)
        assert guest.steps == ["sync", "stop", "taken", "cont", "time"]


async def test_a_machine_that_was_paused_before_its_snapshot_stays_paused() -> None:
    async with fake_guest(running=False) as guest:
        await _paused(guest)
        assert guest.steps == ["taken"]


@pytest.mark.parametrize("answer", [b"", b"no: the clock\n", b"x" * 5000], ids=["silent", "unable", "endless"])
async def test_a_guest_that_does_not_set_its_clock_does_not_fail_the_snapshot(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause, "_SET_CLOCK_TIMEOUT", 0.2)
    async with fake_guest(running=True, answer=answer) as guest:
        with anyio.fail_after(30):
            await _paused(guest)
        assert guest.steps == ["sync", "stop", "taken", "cont", "time"]
        found = read(guest.directory.record)
        assert found is not None and found.halted is None
