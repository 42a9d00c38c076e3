"""The socket of a door, and its cleanup when opening it is cancelled."""

from __future__ import annotations

import socket
from pathlib import Path

import anyio
import pytest

from hiveyard.door.listening import listening
from hiveyard.door.quota import Quota
from hiveyard.door.settings import DoorSettings

pytestmark = pytest.mark.anyio


def next_number() -> int:
    """Return the number of the next descriptor that is opened."""
    with socket.socket() as one:
        return one.fileno()


async def no_app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nobody asked")


async def test_cancelling_the_opening_of_a_door_leaves_no_descriptor_in_the_event_loop(tmp_path: Path) -> None:
    number = next_number()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with listening(no_app, tmp_path / "door.sock", DoorSettings(), Quota(1)):
            raise AssertionError("it opened")
    assert list(tmp_path.iterdir()) == []
    one, other = socket.socketpair()
    with one, other:
        assert number in (one.fileno(), other.fileno())
        listener, speaker = (one, other) if one.fileno() == number else (other, one)
        speaker.send(b"x")
        with anyio.fail_after(20):
            await anyio.wait_readable(listener)
