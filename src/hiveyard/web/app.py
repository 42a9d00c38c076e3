"""The page's application: its routes, behind the authentication."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from hiveyard.core.errors import HiveyardError, NotFound
from hiveyard.web.acts import act_routes
from hiveyard.web.authentication import LOGIN, Authentication, Names
from hiveyard.web.desk import read_desk
from hiveyard.web.devices import COOKIE_DAYS, Devices
from hiveyard.web.feed import Feed
from hiveyard.web.lists import list_routes, render_changes
from hiveyard.web.login import LOGIN_POLICY, login_page, welcome_page
from hiveyard.web.looks import HERE, State
from hiveyard.web.session_page import session_routes
from hiveyard.web.settings import Address
from hiveyard.web.site import Site

log = logging.getLogger(__name__)
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".webmanifest": "application/json"}


@asynccontextmanager
async def make_page(site: Site, names: Names, address: Address) -> AsyncIterator[ASGIApp]:
    """Yield the application. What keeps its lists up to date runs as long as the block."""
    engine, devices = site.engine, site.devices
    seq = await engine.history.last_seq()

    async def render(ids: Collection[str], counts: bool) -> str:
        return await render_changes(site, ids, counts)

    feed = Feed(engine, render, seq)
    site.waiting = (await read_desk(site)).waiting
    # A cookie belongs to a host name, whatever the port: each installation has its own name for it.
    cookie = f"hiveyard-{address.port}"
    routes = [
        _login(devices, cookie),
        *list_routes(site, feed),
        *session_routes(site),
        *act_routes(site),
        _styleguide(site),
        Route("/static/{name:path}", _static),
    ]
    app = Starlette(routes=routes, exception_handlers=_handlers(site))
    async with anyio.create_task_group() as group:
        group.start_soon(feed.run, name="changes for the page")

        def removed(id: str) -> None:
            group.start_soon(feed.tell, [id], name="a removal for the page")

        engine.on_removed = removed
        yield Authentication(app, devices, names, cookie)
        engine.on_removed = lambda id: None
        group.cancel_scope.cancel()


def _login(devices: Devices, cookie: str) -> Route:
    async def login(request: Request) -> Response:
        value = devices.sign_in(request.query_params.get("code", ""), _browser(request.headers.get("user-agent", "")))
        if value is None:
            problem = "This link was used before, or is older than a minute."
            return HTMLResponse(login_page(problem), 401, {"Content-Security-Policy": LOGIN_POLICY})
        answered = HTMLResponse(welcome_page(), headers={"Content-Security-Policy": LOGIN_POLICY})
        secure = request.headers.get("x-forwarded-proto") == "https"  # a proxy with TLS is before the page
        answered.set_cookie(
            cookie, value, max_age=COOKIE_DAYS * 86400, httponly=True, samesite="strict", path="/", secure=secure
        )
        return answered

    return Route(LOGIN, login)


def _browser(agent: str) -> str:
    """Return a name for a browser from what it says about itself: `Firefox on Linux`."""
    programs = {"Edg/": "Edge", "OPR/": "Opera", "Firefox/": "Firefox", "Chrome/": "Chrome", "Safari/": "Safari"}
    systems = {"Android": "Android", "iPhone": "iPhone", "iPad": "iPad", "Windows": "Windows", "Mac OS": "macOS"}
    program = next((name for sign, name in programs.items() if sign in agent), "a browser")
    system = next((name for sign, name in (systems | {"Linux": "Linux"}).items() if sign in agent), "")
    return f"{program} on {system}" if system else program


def _styleguide(site: Site) -> Route:
    tones = [
        State("busy", "spin", "thinking"),
        State("wait", "hand", "waits for you"),
        State("good", "check", "completed"),
        State("bad", "cross", "failed"),
        State("quiet", "stop", "stopped"),
    ]

    async def styleguide(request: Request) -> Response:
        return site.page(request, "styleguide.html", tones=tones)

    return Route("/styleguide", styleguide)


async def _static(request: Request) -> Response:
    directory = HERE / "static"
    file = (directory / request.path_params["name"]).resolve()
    if not file.is_relative_to(directory) or file.suffix not in _TYPES or not file.is_file():
        raise NotFound("the page has no such file")
    # The address has a part of the file's hash.
    return FileResponse(file, media_type=_TYPES[file.suffix], headers={"Cache-Control": "max-age=31536000, immutable"})


def _handlers(site: Site) -> dict[Any, Any]:
    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, HiveyardError)
        return site.problem(request, error, 404 if isinstance(error, NotFound) else 400)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return site.problem(request, NotFound(f"{error.detail}: {request.url.path}"), error.status_code)

    async def fault(request: Request, error: Exception) -> Response:
        log.exception("a request of the page failed", exc_info=error)
        return site.problem(
            request, HiveyardError(f"{type(error).__name__}: {error}", hint="see the daemon's log"), 500
        )

    return {HiveyardError: problem, HTTPException: http, Exception: fault}
