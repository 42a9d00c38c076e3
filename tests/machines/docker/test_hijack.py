"""Read the raw outputs of a process, from an engine that is only a socket here."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from hiveyard.machines.docker.hijack import Hijacked

pytestmark = pytest.mark.anyio
OUT, ERROR = 1, 2


def frame(number: int, data: bytes) -> bytes:
    return struct.pack(">BxxxL", number, len(data)) + data


@asynccontextmanager
async def engine() -> AsyncIterator[tuple[Hijacked, anyio.abc.SocketStream]]:
    """Return a connection to an engine, and the engine's end of it."""
    ours, theirs = socket.socketpair()
    async with (
        await anyio.abc.UNIXSocketStream.from_socket(ours) as here,
        await anyio.abc.UNIXSocketStream.from_socket(theirs) as there,
    ):
        yield Hijacked(here, b""), there


class Counted(deque[bytes]):
    """Read an output piece by piece."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("all that is held was gone through for one piece")


async def test_small_pieces_of_one_output_are_kept_while_the_other_is_read() -> None:
    async with engine() as (hijacked, there):
        hijacked._held = {False: Counted(), True: Counted()}
        await there.send(frame(ERROR, b"e") * 1000 + frame(OUT, b"out"))
        assert await hijacked.receive(error=False) == b"out"
        assert [await hijacked.receive(error=True) for _ in range(1000)] == [b"e"] * 1000


async def test_an_output_is_read_no_further_than_the_limit_of_the_other_and_then_goes_on() -> None:
    async with engine() as (hijacked, there), anyio.create_task_group() as group:
        heard: list[bytes] = []

        async def listen() -> None:
            heard.append(await hijacked.receive(error=False))

        async def say() -> None:
            for _ in range(20):
                await there.send(frame(ERROR, bytes(100_000)))
            await there.send(frame(OUT, b"out"))

        group.start_soon(say)
        group.start_soon(listen)
        with anyio.move_on_after(0.5):
            await anyio.sleep_forever()
        assert not heard
        assert sum(map(len, hijacked._held[True])) < 2_000_000
        taken = 0
        while taken < 2_000_000:
            taken += len(await hijacked.receive(error=True))
    assert heard == [b"out"]
    assert hijacked._size == {False: 0, True: 0}
