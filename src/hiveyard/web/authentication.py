"""Check each request to the page: the name it was sent to, the page that sent it, the browser, and what it may do.

Loopback is no wall: other users of the host, pages of other sites and machines with an open network reach it.
"""

from __future__ import annotations

from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hiveyard.web.devices import Device, Devices
from hiveyard.web.login import LOGIN_POLICY, login_page
from hiveyard.web.settings import Address, WebSettings

LOGIN = "/login"
HEADER = "hiveyard-page"
"""The header of requests that change something. No form of another site can send it."""
_SAFE = ("GET", "HEAD")
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class Names:
    """The names under which the page is reached, and the origins of its own pages."""

    def __init__(self, settings: WebSettings, address: Address) -> None:
        local = (
            {f"{host}:{address.port}" for host in ("127.0.0.1", "localhost", "[::1]")} if settings.is_local else set()
        )
        other = {host.lower() for host in settings.hosts}
        self.hosts = frozenset(local | other | {address.shown})
        self.origins = frozenset({f"http://{host}" for host in self.hosts} | {f"https://{host}" for host in other})


class Authentication:
    """Middleware that lets a request through if it comes from a signed-in browser and the page itself. The device is
    in the request's state."""

    def __init__(self, app: ASGIApp, devices: Devices, names: Names, cookie: str) -> None:
        self._app = app
        self._devices = devices
        self._names = names
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # the server speaks no websockets, and the application has no lifespan
        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        app = self._app if refused is None else refused
        await app(scope, receive, _with_headers(send))

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """Return the answer to a request that is refused; None for one that may pass."""
        host, origin = headers.get("host", "").lower(), headers.get("origin")
        if host not in self._names.hosts:
            return PlainTextResponse("This page has another address: hv web prints it.\n", 421)
        if origin is not None and origin.lower() not in self._names.origins:
            return PlainTextResponse("This request comes from another site.\n", 403)
        if scope["path"] == LOGIN and scope["method"] == "GET":
            return None
        if (device := self._device(headers)) is None:
            return HTMLResponse(login_page(), 401, {"Content-Security-Policy": LOGIN_POLICY})
        scope.setdefault("state", {})["device"] = device
        if scope["method"] in _SAFE:
            return None
        if headers.get(HEADER) is None:
            return PlainTextResponse("This request does not come from the page.\n", 403)
        if device.read_only:
            return PlainTextResponse("This browser may only look: hv web signs in one that may do more.\n", 403)
        return None

    def _device(self, headers: Headers) -> Device | None:
        for line in headers.getlist("cookie"):
            try:
                found = SimpleCookie(line).get(self._cookie)
            except CookieError:
                continue
            if found is not None and (device := self._devices.find(found.value)) is not None:
                return device
        return None


def _with_headers(send: Send) -> Send:
    """Return a `send` that adds the headers of every answer."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", POLICY)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return sending
