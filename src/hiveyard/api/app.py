"""The daemon's HTTP face: JSON requests in, the engine's answers and the journal's events out. No decisions here."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import msgspec
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from hiveyard import __version__
from hiveyard.api import models as m
from hiveyard.api.bounds import BoundedBodies, while_wanted
from hiveyard.api.streams import event_lines, progress_lines
from hiveyard.core.errors import (
    BadInput,
    BranchExists,
    HiveyardError,
    MachineNotReady,
    NoSuchImage,
    NotFound,
    RepositoryError,
)
from hiveyard.engine.engine import Engine
from hiveyard.engine.request import from_json

log = logging.getLogger(__name__)
_STATUS: tuple[tuple[type[HiveyardError], int], ...] = (
    (NotFound, 404),
    (NoSuchImage, 404),
    (BranchExists, 409),
    (MachineNotReady, 409),
    (BadInput, 400),
    (RepositoryError, 400),
)
_EVENTS = {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "description": "server-sent events"}


def make_app(engine: Engine, shut_down: Callable[[], None]) -> FastAPI:
    """The application. `shut_down` asks the daemon to end; running tasks go on in their machines."""
    app = FastAPI(
        title="Hiveyard",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={status: {"model": m.Problem} for status in (400, 404, 405, 409, 500)},
    )
    app.add_middleware(BoundedBodies)
    app.add_exception_handler(Exception, _fault)
    app.add_exception_handler(HiveyardError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    _add_daemon(app, engine, shut_down)
    _add_tasks(app, engine)
    _add_images(app, engine)
    return app


def _add_daemon(app: FastAPI, engine: Engine, shut_down: Callable[[], None]) -> None:
    @app.get("/v1/version")
    async def version() -> m.Version:
        return m.Version(version=__version__, pid=engine.pid, running=engine.running)

    @app.post("/v1/shutdown", status_code=202)
    async def shutdown() -> m.Version:
        shut_down()
        return m.Version(version=__version__, pid=engine.pid, running=engine.running)

    @app.get("/v1/doctor")
    async def doctor() -> list[m.Check]:
        return [m.Check(**check._asdict()) for check in await engine.doctor()]


def _add_tasks(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/tasks", status_code=201)
    async def create(request: Request, body: m.TaskRequest) -> m.Task:
        id = await while_wanted(request, engine.submit(from_json(body.model_dump(exclude_none=True))))
        if await request.is_disconnected():
            # Whoever asked does not know its name: nobody would look after it, and it costs money.
            await engine.cancel(id)
        return m.task(await engine.report(id))

    @app.get("/v1/tasks")
    async def tasks(all: bool = False) -> list[m.Task]:
        return [m.task(report) for report in await engine.reports(live_only=not all)]

    @app.get("/v1/tasks/{ref}")
    async def task(ref: str) -> m.Task:
        return m.task(await engine.report(await engine.resolve(ref)))

    @app.get("/v1/tasks/{ref}/events", responses={200: _EVENTS}, response_class=StreamingResponse)
    async def events(
        ref: str, after: int = Query(0, ge=0), follow: bool = False, raw: bool = False
    ) -> StreamingResponse:
        id = await engine.resolve(ref)
        lines = event_lines(engine, id, after=after, follow=follow, raw=raw)
        return StreamingResponse(_closed(lines), media_type="text/event-stream")

    @app.post("/v1/tasks/{ref}/cancel", status_code=202)
    async def cancel(ref: str) -> m.Task:
        id = await engine.resolve(ref)
        await engine.cancel(id)
        return m.task(await engine.report(id))

    @app.delete("/v1/tasks/{ref}")
    async def remove(ref: str, force: bool = False) -> m.Removed:
        id = await engine.resolve(ref)
        await engine.remove(id, force=force)
        return m.Removed(id=id)

    @app.get("/v1/tasks/{ref}/source")
    async def source(ref: str) -> m.Source:
        return m.Source(**msgspec.to_builtins(await engine.source(await engine.resolve(ref))))


def _add_images(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/images")
    async def images() -> list[m.Image]:
        return [m.image(image) for image in engine.images.list()]

    @app.post("/v1/images/{name:path}/build", responses={200: _EVENTS}, response_class=StreamingResponse)
    async def build(name: str, force: bool = False, provider: str | None = None) -> StreamingResponse:
        lines = progress_lines(lambda report: engine.images.build(name, report, force=force, provider=provider))
        return StreamingResponse(_closed(lines), media_type="text/event-stream")

    @app.delete("/v1/images/{ref:path}")
    async def remove_image(ref: str) -> m.Removed:
        return m.Removed(id=await engine.images.remove(ref))


async def _closed(lines: AsyncGenerator[str, None]) -> AsyncIterator[str]:
    """Close the source when the client goes away, at once and not when the collector gets to it."""
    async with aclosing(lines) as source:
        async for line in source:
            yield line


async def _problem(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HiveyardError)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        log.warning("%s: %s", error.code, error.message)
    return JSONResponse({"error": {"code": error.code, "message": error.message, "hint": error.hint}}, status)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    message = f"{where or 'the request'}: {first['msg']}"
    return JSONResponse({"error": {"code": BadInput.code, "message": message, "hint": ""}}, 400)


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = NotFound.code if error.status_code == 404 else BadInput.code
    message = f"{error.detail}: {request.method} {request.url.path}"
    return JSONResponse({"error": {"code": code, "message": message, "hint": ""}}, error.status_code, error.headers)


async def _fault(_: Request, error: Exception) -> JSONResponse:
    """A mistake of ours: its words go to the caller, its traceback to the log (by the server)."""
    message = f"{type(error).__name__}: {error}"
    return JSONResponse(
        {"error": {"code": HiveyardError.code, "message": message, "hint": "see the daemon's log"}}, 500
    )
