"""A minimal HTTP/1.1 server that can also misbehave. It knows requests, answers and cuts, but no models."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import anyio
import h11
from anyio.abc import ByteStream

_BODY_LIMIT = 64 << 20
_GONE = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, h11.RemoteProtocolError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """An HTTP request. `path` is without the query; header names are in lower case."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer to send. With `cut`, the connection breaks after the first half of the chunks. The second half waits
    for `gate`."""

    chunks: Sequence[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    chunk_delay: float = 0.0
    cut: bool = False
    gate: anyio.Event | None = None


async def converse(stream: ByteStream, answer: Callable[[Request], Awaitable[Answer]]) -> None:
    """Serve one connection until it ends. Errors of the client end it quietly."""
    connection = h11.Connection(h11.SERVER)
    async with stream:
        try:
            while (request := await _request(connection, stream)) is not None:
                given = await answer(request)
                await _send(connection, stream, given)
                if given.cut or connection.our_state is h11.MUST_CLOSE:
                    return
                connection.start_next_cycle()
        except _GONE:
            return


async def _request(connection: h11.Connection, stream: ByteStream) -> Request | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await stream.send(connection.send(go_on) or b"")
            connection.receive_data(await _receive(stream))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > _BODY_LIMIT:
                return None
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            path = head.target.decode("ascii").partition("?")[0]
            headers = [(name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers]
            return Request(method=head.method.decode("ascii"), path=path, headers=headers, body=bytes(body))
        else:
            return None  # the other side closed


async def _receive(stream: ByteStream) -> bytes:
    try:
        return await stream.receive()
    except anyio.EndOfStream:
        return b""


async def _send(connection: h11.Connection, stream: ByteStream, answer: Answer) -> None:
    await anyio.sleep(answer.delay)
    # Chunks have no Content-Length: a cut is then visible as a missing end, not as missing bytes.
    length = {} if len(answer.chunks) > 1 else {"content-length": str(sum(map(len, answer.chunks)))}
    headers = {"content-type": answer.content_type, **length, **answer.headers}
    head = h11.Response(status_code=answer.status, headers=list(headers.items()), reason=_reason(answer.status))
    await stream.send(connection.send(head) or b"")
    for number, chunk in enumerate(_kept(answer)):
        if answer.gate is not None and number == len(answer.chunks) // 2:
            await answer.gate.wait()
        await stream.send(connection.send(h11.Data(data=chunk)) or b"")
        await anyio.sleep(answer.chunk_delay)
    if not answer.cut:
        await stream.send(connection.send(h11.EndOfMessage()) or b"")


def _kept(answer: Answer) -> Sequence[bytes]:
    if not answer.cut:
        return answer.chunks
    if len(answer.chunks) == 1:
        return [answer.chunks[0][: len(answer.chunks[0]) // 2]]
    return answer.chunks[: len(answer.chunks) // 2]


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Overloaded" if status == 529 else "Unknown"
