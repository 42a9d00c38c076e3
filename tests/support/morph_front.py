"""A proxy before the fake Morph Cloud when Prism judges: it sends all there but streams, which Prism holds back,
and most of the commands, which are thousands and alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from tests.support.morph_cloud import served
from tests.support.prism import faults, proxied

_JUDGED = 8  # of so many commands one is judged
_METHODS = ["GET", "POST", "PUT", "DELETE"]
_PASSED = ("authorization", "content-type", "accept", "retry-after")


@contextmanager
def judged(spec: Path, cloud: str) -> Iterator[str]:
    """The address for clients. At the end of the block nothing on either side has broken `spec`."""
    with proxied(spec, cloud) as (judge, log):
        with served(_front(judge, cloud)) as url:
            yield url
        assert not (wrong := faults(log)), wrong


def _front(judge: str, cloud: str) -> Starlette:
    client = httpx2.AsyncClient(timeout=None)
    commands = count()

    def around(path: str) -> bool:
        return path.endswith("/exec/sse") or (path.endswith("/exec") and next(commands) % _JUDGED != 0)

    @asynccontextmanager
    async def open_for_long(_app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def passed(request: Request) -> Response:
        to = cloud if around(request.url.path) else judge
        query = f"?{request.url.query}" if request.url.query else ""
        asked = client.build_request(
            request.method,
            f"{to}{request.scope['raw_path'].decode()}{query}",
            headers=[(name, value) for name, value in request.headers.items() if name in _PASSED],
            content=await request.body(),
        )
        answer = await client.send(asked, stream=True)

        async def pieces() -> AsyncIterator[bytes]:
            async with aclosing(answer):
                async for piece in answer.aiter_bytes():
                    yield piece

        headers = {name: value for name, value in answer.headers.items() if name in _PASSED}
        return StreamingResponse(pieces(), answer.status_code, headers)

    return Starlette(routes=[Route("/{path:path}", passed, methods=_METHODS)], lifespan=open_for_long)
