"""The socket of a door, and what is left when it is not to be after all."""

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
    """The descriptor that whoever opens something next gets."""
    with socket.socket() as one:
        return one.fileno()


async def no_app(scope: object, receive: object, send: object) -> None:
    raise AssertionError("nobody asked")


async def test_opening_that_is_cancelled_leaves_the_descriptor_to_whoever_gets_it_next(tmp_path: Path) -> None:
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
