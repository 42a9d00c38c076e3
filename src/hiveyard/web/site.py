"""The parts that all routes of the page share: the engine, the templates, and how an answer is written."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any
from urllib.parse import parse_qsl

import anyio
import msgspec
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Receive, Scope, Send

from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.engine.engine import Engine
from hiveyard.hive.members import Members
from hiveyard.kit.clock import Clock
from hiveyard.web.devices import Device, Devices
from hiveyard.web.looks import HERE, environment
from hiveyard.web.seen import Seen

FORM_LIMIT = 17 << 20
"""Most bytes of a form: the longest prompt, and a little more."""
BEAT = 15.0
"""Seconds between two signs of life on a stream. With each it is checked that its browser is still signed in."""


class Site:
    """The engine and the state of the page, for its routes."""

    def __init__(self, engine: Engine, members: Members, devices: Devices, seen: Seen, clock: Clock) -> None:
        self.engine = engine
        self.members = members
        self.devices = devices
        self.seen = seen
        self.clock = clock
        self.waiting = 0  # as the desk counted last
        self._templates = environment()
        self._templates.globals["asset"] = _asset

    def fragment(self, template: str, **values: Any) -> str:
        """Return a part of a page."""
        return self._templates.get_template(template).render(values)

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Return an answer with a page or a part of one."""
        device = device_of(request)
        html = self.fragment(template, device=device, path=request.url.path, waiting=self.waiting, **values)
        return HTMLResponse(html, status)

    def done(self, words: str, *, tone: str = "good", events: Mapping[str, Any] | None = None) -> HTMLResponse:
        """Return the answer to an act that was done: words for the corner of the screen, unless the page shows it by
        itself, and events for the page."""
        answered = HTMLResponse(self.fragment("toast.html", tone=tone, words=words, hint="") if words else "")
        answered.headers["HX-Trigger"] = msgspec.json.encode({"hv:done": {}, **(events or {})}).decode()
        return answered

    def problem(self, request: Request, error: HiveyardError, status: int = 400) -> HTMLResponse:
        """Return the answer to a request that cannot be done."""
        if request.headers.get("hx-request") is None:
            return self.page(request, "problem.html", status=status, title="That did not work", error=error)
        answered = HTMLResponse(self.fragment("toast.html", tone="bad", words=error.message, hint=error.hint), status)
        answered.headers["HX-Retarget"], answered.headers["HX-Reswap"] = "#toasts", "beforeend"
        return answered

    def stream(self, request: Request, messages: AsyncGenerator[str, None]) -> EventStream:
        """Return an answer of server-sent events, which ends when the browser is signed out."""
        id = device_of(request).id
        return EventStream(messages, lambda: self.devices.is_valid(id))


class EventStream(Response):
    """An answer of server-sent events, with a comment when there is none for a while. It ends when the browser
    disconnects, or when `allowed` is false."""

    media_type = "text/event-stream"

    def __init__(self, messages: AsyncGenerator[str, None], allowed: Callable[[], bool]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._messages = messages
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        give, take = anyio.create_memory_object_stream[str]()
        async with anyio.create_task_group() as group, give, take:
            group.start_soon(_until_disconnected, receive, group.cancel_scope, name="a page that leaves")
            group.start_soon(_pump, self._messages, give.clone(), name="messages of a page")
            give.close()
            text = "retry: 1000\n\n"
            while text and self._allowed():
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
                text = await _next(take)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            group.cancel_scope.cancel()


async def _pump(messages: AsyncGenerator[str, None], to: MemoryObjectSendStream[str]) -> None:
    async with to, aclosing(messages) as source:
        async for one in source:
            await to.send(one)


async def _next(messages: MemoryObjectReceiveStream[str]) -> str:
    """Return the next message, a comment if there is none for a while, or an empty text at the end."""
    try:
        with anyio.move_on_after(BEAT):
            return await messages.receive()
    except anyio.EndOfStream:
        return ""
    return ": alive\n\n"


async def _until_disconnected(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def device_of(request: Request) -> Device:
    """Return the browser that a request comes from."""
    device: Device = request.state.device
    return device


def message(data: object, *, seq: int | None = None, event: str = "") -> str:
    """Return a server-sent event."""
    head = (f"id: {seq}\n" if seq is not None else "") + (f"event: {event}\n" if event else "")
    text = data if isinstance(data, str) else msgspec.json.encode(data).decode()
    return f"{head}data: {text}\n\n"


def number(text: str | None, default: int = 0) -> int:
    """Return a number of a query. Raises BadInput."""
    if not text:
        return default
    if not text.isdecimal() or len(text) > 18:
        raise BadInput(f"{text[:40]!r} is not a number")
    return int(text)


def after(request: Request) -> int:
    """Return the number of the last event that a page knows: a browser that connects again sends it in a header."""
    return number(request.headers.get("last-event-id") or request.query_params.get("after"))


async def form(request: Request) -> dict[str, str]:
    """Return the fields of a form. Raises BadInput for one that is too long or not UTF-8."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > FORM_LIMIT:
            raise BadInput(f"the form has more than {FORM_LIMIT} bytes")
    try:
        return dict(parse_qsl(data.decode(), keep_blank_values=True, errors="strict", max_num_fields=100))
    except ValueError as error:
        raise BadInput(f"the form cannot be read: {error}") from None


def _asset(name: str) -> str:
    """Return the address of a static file, which changes with its content."""
    if (found := _ASSETS.get(name)) is None:
        digest = hashlib.sha256((HERE / "static" / name).read_bytes()).hexdigest()[:12]
        found = _ASSETS[name] = f"/static/{name}?v={digest}"
    return found


_ASSETS: dict[str, str] = {}
