"""Run a real HTTP server on loopback. The test decides every byte of its answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known == name), None)


Answer = Callable[[Request, SocketStream], Awaitable[None]]


@dataclass(slots=True)
class Upstream:
    """A server: its received requests, and how it answers. `open` counts the open connections."""

    answer: Answer
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    open: int = 0

    async def serve(self, stream: SocketStream) -> None:
        self.open += 1
        try:
            async with stream:
                while request := await _read(stream):
                    self.requests.append(request)
                    await self.answer(request, stream)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, anyio.IncompleteRead):
            pass
        finally:
            self.open -= 1


@asynccontextmanager
async def upstream(answer: Answer) -> AsyncIterator[Upstream]:
    server = Upstream(answer)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as group:
        server.url = f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}"
        group.start_soon(listener.serve, server.serve)
        try:
            yield server
        finally:
            group.cancel_scope.cancel()


def whole(body: bytes, *, status: int = 200, kind: str = "application/json", more: str = "") -> Answer:
    """Return an answer with a length, sent at once."""

    async def answer(_request: Request, stream: SocketStream) -> None:
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
        await stream.send(head.encode() + body)

    return answer


def streamed(*chunks: bytes, cut: bool = False, before: Callable[[int], Awaitable[None]] | None = None) -> Answer:
    """Return a stream of events in chunks. `before` is awaited with each number; `cut` leaves out the end."""

    async def answer(_request: Request, stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number, chunk in enumerate(chunks):
            if before is not None:
                await before(number)
            await stream.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        if cut:
            await stream.aclose()
        else:
            await stream.send(b"0\r\n\r\n")

    return answer


async def _read(stream: SocketStream) -> Request | None:
    buffered = BufferedByteReceiveStream(stream)
    try:
        head = await buffered.receive_until(b"\r\n\r\n", 1 << 20)
    except (anyio.EndOfStream, anyio.IncompleteRead):
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, target, _ = first.split(" ")
    headers = tuple((name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines))
    length = int(dict(headers).get("content-length", "0"))
    return Request(
        method=method, target=target, headers=headers, body=await buffered.receive_exactly(length) if length else b""
    )
