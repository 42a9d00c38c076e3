"""Routes of the daemon's own socket with which `hv web` controls the page."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import Removed, WebDevice, WebLink, WebLinkRequest
from hiveyard.api.document import gives, takes
from hiveyard.core.parsing import parsed
from hiveyard.web.devices import Device
from hiveyard.web.listener import Listener


def add_control(app: FastAPI, listener: Listener) -> None:
    @app.post("/v1/web/links", **takes(WebLinkRequest), **gives(WebLink, 201))
    async def link(request: Request) -> Response:
        asked = parsed(await body(request), WebLinkRequest, "link request")
        return answer(WebLink(await listener.link(read_only=asked.read_only)), 201)

    @app.get("/v1/web/devices", **gives(list[WebDevice]))
    async def devices() -> Response:
        return answer([_view(device) for device in listener.devices.list()])

    @app.delete("/v1/web/devices/{ref}", **gives(Removed))
    async def revoke(ref: str) -> Response:
        return answer(Removed(listener.devices.revoke(ref).id))


def _view(device: Device) -> WebDevice:
    return WebDevice(
        id=device.id,
        name=device.name,
        read_only=device.read_only,
        created_at=device.created_at,
        seen_at=device.seen_at,
    )
