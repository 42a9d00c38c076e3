"""A number that somebody lets go of while it is registered is heard for its next owner; a wait that is cancelled when
its socket becomes ready is no error."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute, UNIXSocketStream

from hiveyard.kit import event_loop


def closed_in_this_breath(stream: UNIXSocketStream) -> int:
    """Close a stream, as far as that goes before the loop has its turn; the number that is free now."""
    number: int = stream.extra(SocketAttribute.raw_socket).fileno()
    stream.aclose().send(None)
    return number


async def is_heard(path: str) -> bool:
    """Whether the next owner of a number is, which gets it before the loop has heard that a stream is closed from which
    somebody receives."""
    heard = asyncio.Event()
    async with await anyio.create_unix_listener(path), anyio.create_task_group() as group:
        stream = await anyio.connect_unix(path)

        async def receive() -> None:
            with contextlib.suppress(anyio.ClosedResourceError):
                await stream.receive()

        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        number = closed_in_this_breath(stream)
        one, other = socket.socketpair()
        assert number in (one.fileno(), other.fileno())
        owner, speaker = (one, other) if one.fileno() == number else (other, one)
        asyncio.get_running_loop().add_reader(owner, heard.set)
        await anyio.sleep(0.1)
        with owner, speaker, anyio.move_on_after(1):
            speaker.send(b"x")
            await heard.wait()
    return heard.is_set()


@pytest.mark.parametrize("ours", [True, False])
def test_the_next_owner_of_a_number_is_heard(tmp_path: Path, ours: bool) -> None:
    """asyncio's own selector shows that there is something to mend."""
    options = event_loop.OPTIONS if ours else {}
    assert anyio.run(is_heard, str(tmp_path / "socket"), backend_options=options) is ours


async def complaints() -> list[str]:
    """What the loop reports when a stream becomes readable in the round in which its reader is cancelled."""
    running, said = asyncio.get_running_loop(), list[str]()
    running.set_exception_handler(lambda _, context: said.append(context["message"]))
    one, other = socket.socketpair()
    with one, other:
        for wait in (running.add_reader, running.add_writer):
            future = running.create_future()
            wait(one, future.set_result, None)
            other.send(b"x")
            future.cancel()
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            running.remove_reader(one)
            running.remove_writer(one)
    return said


@pytest.mark.parametrize("ours", [True, False])
def test_a_wait_that_was_cancelled_is_not_told(ours: bool) -> None:
    said = anyio.run(complaints, backend_options=event_loop.OPTIONS if ours else {})
    assert (said == []) is ours, said
