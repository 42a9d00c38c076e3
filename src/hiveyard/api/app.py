"""The daemon's HTTP API: JSON requests in, the engine's answers and the journal's events out. It decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from hiveyard import __version__
from hiveyard.api.access import add_access
from hiveyard.api.answers import answer, body, stream
from hiveyard.api.bodies import BuildLine, Image, Problem, Removed, Version, built, problem
from hiveyard.api.bounds import LAST_SEQ, BoundedBodies, until_disconnected
from hiveyard.api.document import PROBLEMS, describe, gives, streams, takes
from hiveyard.api.hive import add_hive
from hiveyard.api.sessions import add_sessions
from hiveyard.api.snapshots import add_snapshots
from hiveyard.api.streams import all_event_lines, event_lines, progress_lines
from hiveyard.api.system import add_system
from hiveyard.core.errors import (
    BadArchive,
    BadInput,
    BadTape,
    BranchExists,
    HiveError,
    HiveyardError,
    MachineNotReady,
    NoMemory,
    NoSuchImage,
    NotAllowed,
    NotFound,
    PortTaken,
    RepositoryError,
    SessionDamaged,
    SessionInUse,
    SessionNotRunning,
    UnknownAgent,
)
from hiveyard.core.events import Event, Failure
from hiveyard.engine.engine import Engine
from hiveyard.engine.tasks.request import TaskRequest, from_json
from hiveyard.engine.tasks.view import TaskView
from hiveyard.engine.upkeep.doctor import Check
from hiveyard.engine.workspace.result import ResultLocation
from hiveyard.hive.members import Members
from hiveyard.kit.text import one_line

log = logging.getLogger(__name__)
_Names = Annotated[list[str], Query(default_factory=list, max_length=100)]
_STATUS: tuple[tuple[type[HiveyardError], int], ...] = (
    (NotFound, 404),
    (NoSuchImage, 404),
    (BranchExists, 409),
    (PortTaken, 409),
    (MachineNotReady, 409),
    (NoMemory, 409),
    (SessionNotRunning, 409),
    (SessionInUse, 409),
    (SessionDamaged, 409),
    (BadArchive, 400),
    (BadInput, 400),
    (RepositoryError, 400),
    (UnknownAgent, 400),
    (BadTape, 400),
    (NotAllowed, 403),
    (HiveError, 409),
)


def make_app(engine: Engine, members: Members, shut_down: Callable[[], None]) -> FastAPI:
    """Return the application. `shut_down` asks the daemon to end; running tasks continue in their machines."""
    app = FastAPI(
        title="Hiveyard",
        version=__version__,
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=PROBLEMS,
    )
    app.add_middleware(BoundedBodies)
    app.add_exception_handler(Exception, _fault)
    app.add_exception_handler(HiveyardError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    _add_daemon(app, engine, shut_down)
    _add_tasks(app, engine)
    add_sessions(app, engine, members)
    add_hive(app, members)
    add_access(app, engine)
    add_snapshots(app, engine)
    add_system(app, engine)
    _add_images(app, engine)
    describe(app)
    return app


def _add_daemon(app: FastAPI, engine: Engine, shut_down: Callable[[], None]) -> None:
    def current() -> Version:
        return Version(__version__, engine.pid, engine.running)

    @app.get("/v1/version", **gives(Version))
    async def version() -> Response:
        return answer(current())

    @app.post("/v1/shutdown", **gives(Version, 202))
    async def shutdown() -> Response:
        shut_down()
        return answer(current(), 202)

    @app.get("/v1/doctor", **gives(list[Check]))
    async def doctor() -> Response:
        return answer(await engine.doctor())


def _add_tasks(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/tasks", **takes(TaskRequest), **gives(TaskView, 201))
    async def create(request: Request) -> Response:
        asked = from_json(await body(request))
        id = await until_disconnected(request, engine.submit(asked))
        if await request.is_disconnected():
            # The client does not know the task's id: nobody would watch it, and it costs money.
            await engine.cancel(id)
        return answer(await engine.report(id), 201)

    @app.get("/v1/tasks", **gives(list[TaskView]))
    async def tasks(all: bool = False, limit: int | None = Query(None, ge=1, le=LAST_SEQ)) -> Response:
        return answer(await engine.reports(live_only=not all, limit=limit))

    @app.get("/v1/tasks/{ref}", **gives(TaskView))
    async def task(ref: str) -> Response:
        return answer(await engine.report(await engine.resolve(ref)))

    @app.get("/v1/tasks/{ref}/events", **streams(Event), response_class=StreamingResponse)
    async def events(
        ref: str, after: int = Query(0, ge=0, le=LAST_SEQ), follow: bool = False, raw: bool = False
    ) -> StreamingResponse:
        id = await engine.resolve(ref)
        lines = event_lines(engine, id, after=after, follow=follow, raw=raw)
        return stream(lines)

    @app.get("/v1/events", **streams(Event), response_class=StreamingResponse)
    async def all_events(
        type: _Names,
        session: _Names,
        after: int = Query(0, ge=0, le=LAST_SEQ),
        follow: bool = False,
        raw: bool = False,
        last_event_id: int | None = Header(None, ge=0, le=LAST_SEQ),
    ) -> StreamingResponse:
        """Events of all tasks and sessions. A client that connects again sends the number of the last event that it
        got as `Last-Event-ID`."""
        sessions = [await engine.resolve(ref) for ref in session]
        after = after if last_event_id is None else last_event_id
        return stream(all_event_lines(engine, after=after, follow=follow, raw=raw, types=type, sessions=sessions))

    @app.post("/v1/tasks/{ref}/cancel", **gives(TaskView, 202))
    async def cancel(ref: str) -> Response:
        id = await engine.resolve(ref)
        await engine.cancel(id)
        return answer(await engine.report(id), 202)

    @app.delete("/v1/tasks/{ref}", **gives(Removed))
    async def remove(ref: str, force: bool = False) -> Response:
        id = await engine.resolve(ref)
        await engine.remove(id, force=force)
        return answer(Removed(id))

    @app.get("/v1/tasks/{ref}/source", **gives(ResultLocation))
    async def source(ref: str) -> Response:
        return answer(await engine.source(await engine.resolve(ref)))


def _add_images(app: FastAPI, engine: Engine) -> None:
    @app.get("/v1/images", **gives(list[Image]))
    async def images() -> Response:
        return answer([built(image) for image in engine.images.list()])

    @app.post(
        "/v1/images/{name:path}/build",
        **streams(BuildLine, Image, Problem),
        response_class=StreamingResponse,
    )
    async def build(name: str, force: bool = False, provider: str | None = None) -> StreamingResponse:
        lines = progress_lines(lambda report: engine.images.build(name, report, force=force, provider=provider))
        return stream(lines)

    @app.delete("/v1/images/{ref:path}", **gives(Removed))
    async def remove_image(ref: str) -> Response:
        return answer(Removed(await engine.remove_image(ref)))


async def _problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, HiveyardError)
    status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
    if status == 500:
        log.warning("%s: %s", error.code, error.message)
    return answer(problem(error), status)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    message = f"{where} is {one_line(str(first['input']), 80)!r}: {first['msg']}"
    return answer(problem(BadInput(message)), 400)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = NotFound.code if error.status_code == 404 else BadInput.code
    message = f"{error.detail}: {request.method} {request.url.path}"
    answered = answer(Problem(Failure(code=code, message=message)), error.status_code)
    answered.headers.update(error.headers or {})
    return answered


async def _fault(_: Request, error: Exception) -> Response:
    """Answer a request that failed by a bug: the message goes to the client, the server logs the traceback."""
    return answer(problem(HiveyardError(f"{type(error).__name__}: {error}", hint="see the daemon's log")), 500)
