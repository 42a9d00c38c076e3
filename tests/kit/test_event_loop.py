"""A descriptor that is closed while registered works for its next owner. A cancelled wait reports no error."""

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


def close_now(stream: UNIXSocketStream) -> int:
    """Close a stream as far as possible before the loop runs again. Return the free descriptor number."""
    number: int = stream.extra(SocketAttribute.raw_socket).fileno()
    stream.aclose().send(None)
    return number


async def next_owner_gets_events(path: str) -> bool:
    """Return whether the next owner of a descriptor gets events.

    It gets the number before the loop knows that the previous stream, from which a task receives, is closed."""
    heard = asyncio.Event()
    async with await anyio.create_unix_listener(path), anyio.create_task_group() as group:
        stream = await anyio.connect_unix(path)

        async def receive() -> None:
            with contextlib.suppress(anyio.ClosedResourceError):
                await stream.receive()

        group.start_soon(receive)
        await anyio.wait_all_tasks_blocked()
        number = close_now(stream)
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
def test_the_next_owner_of_a_descriptor_number_gets_events(tmp_path: Path, ours: bool) -> None:
    """asyncio's own selector shows the bug."""
    options = event_loop.OPTIONS if ours else {}
    assert anyio.run(next_owner_gets_events, str(tmp_path / "socket"), backend_options=options) is ours


async def reported_errors() -> list[str]:
    """Return the errors that the loop reports when a stream becomes readable in the round in which its reader is
    cancelled."""
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
def test_a_cancelled_wait_reports_no_error(ours: bool) -> None:
    said = anyio.run(reported_errors, backend_options=event_loop.OPTIONS if ours else {})
    assert (said == []) is ours, said
