"""Apps of this host below a path of a door."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from hiveyard.core.events import DoorRefused
from hiveyard.door.mounts import Mount

from .house import MemoryJournal, door, guest

pytestmark = pytest.mark.anyio


async def _echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"path": request.url.path, "size": len(body), "headers": sorted(request.headers)})


async def _broken(request: Request) -> Response:
    raise RuntimeError("broken")


APP = Starlette(
    routes=[
        Route("/echo", _echo, methods=["POST"]),
        Route("/broken", _broken),
        Route("/", lambda request: PlainTextResponse("root")),
    ]
)
NOWHERE = "http://127.0.0.1:9"


async def test_an_app_is_served_to_the_guest_alone_without_the_key_and_within_its_limits(tmp_path: Path) -> None:
    journal, mounts = MemoryJournal(), {"/mcp": Mount(APP, body_kib=1)}
    async with door(NOWHERE, journal, tmp_path, mounts=mounts) as opened, guest(opened) as client:
        answered = await client.post("/mcp/echo", content=b"x" * 1000)
        assert answered.json()["size"] == 1000
        assert not {"authorization", "x-api-key"} & set(answered.json()["headers"])
        assert (await client.get("/mcp/")).text == "root"
        assert opened.busy == 0
        assert (await client.post("/mcp/echo", content=b"x" * 2000)).status_code == 413
        assert (await client.get("/mcp/broken")).status_code == 500
        assert (await client.get("/mcpx")).status_code == 404
        async with guest(opened, key="wrong") as stranger:
            assert (await stranger.post("/mcp/echo")).status_code == 401
    assert [one.what for one in journal.of(DoorRefused)] == ["GET /mcpx", "POST /mcp"]
