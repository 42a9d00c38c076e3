"""Routes for snapshots, forks, rewinds and comparisons."""

from __future__ import annotations

from fastapi import FastAPI, Query, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import Removed, RewindRequest, SnapshotRequest
from hiveyard.api.document import gives, takes
from hiveyard.core.parsing import parsed
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.view import SessionView
from hiveyard.engine.snapshots.compare import Compared
from hiveyard.engine.snapshots.fork import Forked, ForkRequest
from hiveyard.engine.snapshots.service import SnapshotView, view


def add_snapshots(app: FastAPI, engine: Engine) -> None:
    _add_snapshots(app, engine)
    _add_forks(app, engine)


def _add_snapshots(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/sessions/{ref}/snapshots", **takes(SnapshotRequest), **gives(SnapshotView, 201))
    async def take(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), SnapshotRequest, "snapshot request")
        point = await engine.snapshots.take(await engine.resolve(ref), asked.name)
        return answer(view(point), 201)

    @app.get("/v1/sessions/{ref}/snapshots", **gives(list[SnapshotView]))
    async def snapshots(ref: str) -> Response:
        return answer(await engine.snapshots.list(await engine.resolve(ref)))

    @app.delete("/v1/sessions/{ref}/snapshots/{snapshot}", **gives(Removed))
    async def remove(ref: str, snapshot: str) -> Response:
        return answer(Removed(await engine.snapshots.remove(await engine.resolve(ref), snapshot)))


def _add_forks(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/sessions/{ref}/fork", **takes(ForkRequest), **gives(Forked, 201))
    async def fork(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), ForkRequest, "fork request")
        return answer(await engine.forks.fork(await engine.resolve(ref), asked), 201)

    @app.post("/v1/sessions/{ref}/rewind", **takes(RewindRequest), **gives(SessionView, 202))
    async def rewind(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), RewindRequest, "rewind request")
        id = await engine.resolve(ref)
        await engine.rewinds.rewind(id, asked.snapshot, force=asked.force)
        return answer(await engine.sessions.view(id), 202)

    @app.get("/v1/comparison", **gives(list[Compared]))
    async def compare(session: list[str] = Query(min_length=1)) -> Response:  # noqa: B008
        return answer(await engine.comparisons.compare([await engine.resolve(ref) for ref in session]))
