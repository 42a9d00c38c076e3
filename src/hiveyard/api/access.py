"""Routes for access to a session: ports, ssh, commands with streams."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import PortRequest, Removed, SshConfig
from hiveyard.api.channel import Channel
from hiveyard.api.document import gives, takes
from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput
from hiveyard.core.parsing import parsed
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.view import OpenPort
from hiveyard.engine.workspace.directory import GUEST_REPO

ARGV_LIMIT = 4 << 20
"""Most bytes of a command with its arguments, as JSON: more than a kernel accepts."""
Port = Annotated[int, Path(ge=1, le=65535)]


def add_access(app: FastAPI, engine: Engine) -> None:
    sessions = engine.sessions

    @app.post("/v1/sessions/{ref}/ports", **takes(PortRequest), **gives(OpenPort))
    async def open_port(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), PortRequest, "port request")
        id = await engine.resolve(ref)
        return answer(OpenPort(host=await engine.access.open_port(id, asked.guest, asked.host), guest=asked.guest))

    @app.delete("/v1/sessions/{ref}/ports/{guest}", **gives(Removed))
    async def close_port(ref: str, guest: Port) -> Response:
        id = await engine.resolve(ref)
        await engine.access.close_port(id, guest)
        return answer(Removed(id))

    @app.get("/v1/sessions/{ref}/ssh-config", **gives(SshConfig))
    async def ssh_config(ref: str) -> Response:
        return answer(SshConfig(await engine.access.ssh_config(await engine.resolve(ref))))

    @app.post("/v1/sessions/{ref}/exec", include_in_schema=False)
    async def execute(ref: str, request: Request, size: Annotated[int, Query(ge=2, le=ARGV_LIMIT)]) -> Response:
        id = await engine.resolve(ref)
        await sessions.check_reachable(id)
        argv, begun, more = await _read_argv(request, size)
        return Channel(sessions.guest(id), Command(argv=argv, cwd=GUEST_REPO), begun, more=more)


async def _read_argv(request: Request, size: int) -> tuple[tuple[str, ...], bytes, bool]:
    """Read the argv: the first `size` bytes of the body are a JSON array of strings. Return it, the bytes that were
    read behind it, and whether the body continues. Raises BadInput."""
    data, more = bytearray(), True
    while more and len(data) < size:
        message = await request.receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        words = msgspec.json.decode(bytes(data[:size]), type=tuple[str, ...])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadInput(f"the command is not a JSON array of strings: {error}") from None
    if not words:
        raise BadInput("the command is empty", hint="hv exec ID -- COMMAND")
    return words, bytes(data[size:]), more
