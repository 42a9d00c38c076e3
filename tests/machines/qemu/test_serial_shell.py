"""Errors of commands that run over a machine's serial port."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from anyio.abc import UNIXSocketStream

from hiveyard.core.errors import CannotExecute, GuestDisconnected, HiveyardError
from hiveyard.machines.qemu.serial_shell import SerialShell
from hiveyard.machines.qemu.vm import find_process
from hiveyard.machines.shared.dialogue import communicate

pytestmark = pytest.mark.anyio


def frames(*kinds: bytes) -> bytes:
    return b"".join(struct.pack(">cI", kind, 0) for kind in kinds)


def nothing(_piece: bytes) -> None:
    pass


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (frames(b"N", b"R"), CannotExecute, "machine m cannot start one more program"),
        (frames(b"?"), GuestDisconnected, "machine m sent a frame of unknown kind: b'?'"),
    ],
)
async def test_a_command_that_did_not_run_raises_one_error(
    answer: bytes, error: type[HiveyardError], words: str
) -> None:
    ours, guests = socket.socketpair()
    with guests:
        guests.sendall(answer)
        vm = find_process(os.getpid())
        assert vm is not None
        shell = SerialShell("m", vm, await UNIXSocketStream.from_socket(ours))
        with pytest.raises(error) as caught:
            async with shell.run(["true"]) as command:
                await communicate(command, b"", nothing, nothing)
        assert caught.value.message == words
        await shell.aclose()


async def test_a_command_that_never_starts_times_out() -> None:
    ours, guests = socket.socketpair()
    with guests:
        guests.sendall(frames(b"R"))
        vm = find_process(os.getpid())
        assert vm is not None
        shell = SerialShell("m", vm, await UNIXSocketStream.from_socket(ours), start_timeout=0.05)
        with pytest.raises(GuestDisconnected) as caught:
            async with shell.run(["true"]) as command:
                await communicate(command, b"", nothing, nothing)
        assert caught.value.message == "machine m did not start a command within 0.05s"
        assert not shell.free
