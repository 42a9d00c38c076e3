"""The routes of ways into a session: ports, ssh, commands with streams."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import FastAPI, Path, Query, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import PortAsked, Removed, SshConfig
from hiveyard.api.channel import Channel
from hiveyard.api.document import gives, takes
from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput
from hiveyard.core.parsing import parsed
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.view import OpenPort
from hiveyard.engine.workspace.directory import GUEST_REPO

LONGEST_ARGV = 4 << 20
"""Bytes of a command with its arguments, as JSON: more than a kernel takes."""
Port = Annotated[int, Path(ge=1, le=65535)]


def add_access(app: FastAPI, engine: Engine) -> None:
    sessions = engine.sessions

    @app.post("/v1/sessions/{ref}/ports", **takes(PortAsked), **gives(OpenPort))
    async def open_port(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), PortAsked, "port request")
        id = await engine.resolve(ref)
        return answer(OpenPort(host=await sessions.open_port(id, asked.guest, asked.host), guest=asked.guest))

    @app.delete("/v1/sessions/{ref}/ports/{guest}", **gives(Removed))
    async def close_port(ref: str, guest: Port) -> Response:
        id = await engine.resolve(ref)
        await sessions.close_port(id, guest)
        return answer(Removed(id))

    @app.get("/v1/sessions/{ref}/ssh-config", **gives(SshConfig))
    async def ssh_config(ref: str) -> Response:
        return answer(SshConfig(await sessions.ssh_config(await engine.resolve(ref))))

    @app.post("/v1/sessions/{ref}/exec", include_in_schema=False)
    async def execute(ref: str, request: Request, size: Annotated[int, Query(ge=2, le=LONGEST_ARGV)]) -> Response:
        id = await engine.resolve(ref)
        await sessions.reachable(id)
        argv, begun, more = await _argv(request, size)
        return Channel(sessions.guest(id), Command(argv=argv, cwd=GUEST_REPO), begun, more=more)


async def _argv(request: Request, size: int) -> tuple[tuple[str, ...], bytes, bool]:
    """The argv, a JSON array that the first `size` bytes of the body are; what was read behind it, and whether more is
    to come. Raises BadInput."""
    data, more = bytearray(), True
    while more and len(data) < size:
        message = await request.receive()
        data += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        words = msgspec.json.decode(bytes(data[:size]), type=tuple[str, ...])
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadInput(f"the command is no JSON array of texts: {error}") from None
    if not words:
        raise BadInput("there is no command", hint="hv exec ID -- COMMAND")
    return words, bytes(data[size:]), more
