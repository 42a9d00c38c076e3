"""A machine that stood still for a moment is given the time that it missed, and nobody waits for ever for it.

QEMU, what serves /session and the guest are sockets here that answer what those would.
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
from hiveyard.machines.qemu.record import Record, Rig, read
from hiveyard.machines.qemu.snapshot import _Taking
from hiveyard.machines.qemu.vm import Vm, boot_id
from hiveyard.machines.qemu.wire import qmp
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


class Guest:
    """What happened, in order; `runs` is what QEMU says of it."""

    def __init__(self, rig: Rig, *, runs: bool, answer: bytes) -> None:
        self.rig = rig
        self.runs = runs
        self.answer = answer
        self.happened: list[str] = []

    def qmp(self, line: bytes) -> bytes:
        command = json.loads(line)["execute"]
        if command in ("stop", "cont"):
            self.runs = command == "cont"
            self.happened.append(command)
        status = {"status": "running" if self.runs else "paused"}
        return json.dumps({"return": status}).encode() + b"\n"

    def session(self, line: bytes) -> bytes:
        return b"{}\n" if line == b"quiet\n" else b""

    def become(self, line: bytes) -> bytes:
        assert abs(float(line) - time.time()) < 60
        self.happened.append("time")
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
async def standing(*, runs: bool, answer: bytes = b"yes\n") -> AsyncIterator[Guest]:
    with searched_directory() as root:
        guest = Guest(Rig(root), runs=runs, answer=answer)
        async with (
            listening(guest.rig.qmp, guest.qmp, b'{"QMP": {}}\n'),
            listening(guest.rig.session, guest.session),
            listening(guest.rig.become, guest.become),
        ):
            yield guest


def record(halted: Vm | None = None) -> Record:
    return Record(name="m", image="i", status=MachineStatus.READY, created_at=0.0, halted=halted)


async def test_one_whose_halter_was_killed_goes_on_with_the_time() -> None:
    async with standing(runs=False) as guest:
        mended = await pause.mended(record(Vm(1 << 30, 0, boot_id())), guest.rig)
        assert guest.happened == ["cont", "time"]
        assert mended.halted is None


async def _held(guest: Guest) -> _Taking:
    taking = _Taking(record(), guest.rig, guest.rig.root, guest.rig.root, None, None)
    async with qmp(guest.rig.qmp) as wire, taking._still(wire):
        guest.happened.append("taken")
    return taking


async def test_one_that_stood_still_for_a_snapshot_is_given_the_time_when_it_runs() -> None:
    async with standing(runs=True) as guest:
        await _held(guest)
        assert guest.happened == ["stop", "taken", "cont", "time"]


async def test_one_that_was_paused_before_its_snapshot_is_given_the_time_when_it_goes_on() -> None:
    async with standing(runs=False) as guest:
        await _held(guest)
        assert guest.happened == ["taken"]


@pytest.mark.parametrize("answer", [b"", b"no: the clock\n", b"x" * 5000], ids=["silent", "unable", "endless"])
async def test_a_guest_that_does_not_take_the_time_fails_no_snapshot(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pause, "_TICK", 0.2)
    async with standing(runs=True, answer=answer) as guest:
        with anyio.fail_after(30):
            await _held(guest)
        assert guest.happened == ["stop", "taken", "cont", "time"]
        found = read(guest.rig.record)
        assert found is not None and found.halted is None
