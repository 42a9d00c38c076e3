"""A daemon dies during an answer, and the next one opens the same door."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from hiveyard.core.events import ModelCalled
from hiveyard.core.usage import Usage
from hiveyard.kit.process import running, signal_group

from . import bodies
from .house import KEY, PLACEHOLDER, MemoryJournal, door, message
from .upstream import Request, streamed, upstream, whole

pytestmark = pytest.mark.anyio


async def test_after_kill_9_the_same_socket_answers_the_same_guest(tmp_path: Path) -> None:
    journal, hung_up = MemoryJournal(), anyio.Event()
    first = True

    async def never_end(number: int) -> None:
        if number:
            await hung_up.wait()

    async def answer(request: Request, stream: anyio.abc.SocketStream) -> None:
        slow = streamed(bodies.ANTHROPIC_STREAM[:500], b"x", before=never_end)
        await (slow if first else whole(bodies.ANTHROPIC_WHOLE))(request, stream)

    transport = httpx2.AsyncHTTPTransport(uds=str(tmp_path / "door.sock"))
    client = httpx2.AsyncClient(
        transport=transport, base_url="http://door", headers={"x-api-key": PLACEHOLDER}, timeout=20
    )
    program = str(Path(__file__).with_name("daemon.py"))
    env = {**os.environ, "KEY": KEY, "PLACEHOLDER": PLACEHOLDER}
    async with upstream(answer) as up, client:
        async with running([sys.executable, program, up.url, str(tmp_path)], env=env, grace=0) as daemon:
            assert daemon.stdout is not None
            assert await BufferedByteReceiveStream(daemon.stdout).receive_until(b"\n", 100) == b"open"
            async with client.stream("POST", "/anthropic/v1/messages", json=message(stream=True)) as response:
                chunks = response.aiter_raw()
                await anext(chunks)
                signal_group(daemon.pid, signal.SIGKILL)
                with pytest.raises(httpx2.TransportError):
                    await anext(chunks)
        hung_up.set()
        first = False
        assert (tmp_path / "door.sock").is_socket(), "a killed daemon leaves its socket behind"
        with pytest.raises(httpx2.ConnectError):
            await client.get("/")
        async with door(up.url, journal, tmp_path, spent=Usage(cost_usd=0.25, requests=3)) as opened:
            again = await client.post("/anthropic/v1/messages", json=message())
            assert again.content == bodies.ANTHROPIC_WHOLE
            assert opened.spent.requests == 4 and (opened.spent.cost_usd or 0) > 0.25
    assert len(journal.of(ModelCalled)) == 1
