"""What is said of commands at the port that a machine has them from before there is a connection."""

from __future__ import annotations

import os
import socket
import struct

import pytest
from anyio.abc import UNIXSocketStream

from hiveyard.core.errors import CannotExecute, GuestDisconnected, HiveyardError
from hiveyard.machines.qemu.serial_shell import SerialShell
from hiveyard.machines.qemu.vm import seen
from hiveyard.machines.shared.dialogue import communicate

pytestmark = pytest.mark.anyio


def frames(*kinds: bytes) -> bytes:
    return b"".join(struct.pack(">cI", kind, 0) for kind in kinds)


def nothing(_piece: bytes) -> None:
    pass


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (frames(b"N", b"R"), CannotExecute, "machine m has no room for one more program"),
        (frames(b"?"), GuestDisconnected, "machine m sent a frame that makes no sense: b'?'"),
    ],
)
async def test_a_command_that_did_not_run_is_told_as_one_error(
    said: bytes, error: type[HiveyardError], words: str
) -> None:
    ours, guests = socket.socketpair()
    with guests:
        guests.sendall(said)
        vm = seen(os.getpid())
        assert vm is not None
        early = SerialShell("m", vm, await UNIXSocketStream.from_socket(ours))
        with pytest.raises(error) as caught:
            async with early.run(["true"]) as spoken:
                await communicate(spoken, b"", nothing, nothing)
        assert caught.value.message == words
        await early.aclose()


async def test_a_command_that_never_begins_is_given_up() -> None:
    ours, guests = socket.socketpair()
    with guests:
        guests.sendall(frames(b"R"))
        vm = seen(os.getpid())
        assert vm is not None
        early = SerialShell("m", vm, await UNIXSocketStream.from_socket(ours), patience=0.05)
        with pytest.raises(GuestDisconnected) as caught:
            async with early.run(["true"]) as spoken:
                await communicate(spoken, b"", nothing, nothing)
        assert caught.value.message == "machine m did not begin a command within 0.05s"
        assert not early.free
