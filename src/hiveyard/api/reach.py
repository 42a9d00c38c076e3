"""The routes of ways into a session: ports, ssh, commands with streams."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Path, Query, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import PortAsked, Removed, SshConfig
from hiveyard.api.channel import Channel
from hiveyard.api.document import gives, takes
from hiveyard.core.commands import Command
from hiveyard.engine.engine import Engine
from hiveyard.engine.parsing import parsed
from hiveyard.engine.roster import OpenPort
from hiveyard.engine.workspace import GUEST_REPO

Port = Annotated[int, Path(ge=1, le=65535)]


def add_reach(app: FastAPI, engine: Engine) -> None:
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
    async def execute(ref: str, argv: Annotated[list[str], Query(min_length=1)]) -> Response:
        id = await engine.resolve(ref)
        command = Command(argv=tuple(argv), cwd=GUEST_REPO)
        await sessions.reachable(id)
        return Channel(sessions.guest(id), command)
