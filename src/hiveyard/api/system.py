"""Routes for exports, imports and disk usage."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import ExportRequest, ImportRequest
from hiveyard.api.document import gives, takes
from hiveyard.core.parsing import parsed
from hiveyard.engine.archive.exporting import Exported
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.view import SessionView
from hiveyard.engine.upkeep.housekeeping import Costs, Pruned
from hiveyard.engine.upkeep.reconciler import Reconciled


def add_system(app: FastAPI, engine: Engine) -> None:
    @app.post("/v1/sessions/{ref}/export", **takes(ExportRequest), **gives(Exported, 201))
    async def export(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), ExportRequest, "export request")
        return answer(await engine.exports.export(await engine.resolve(ref), Path(asked.path)), 201)

    @app.post("/v1/imports", **takes(ImportRequest), **gives(SessionView, 201))
    async def import_(request: Request) -> Response:
        asked = parsed(await body(request), ImportRequest, "import request")
        id = await engine.imports.import_archive(
            Path(asked.path), new=asked.new, name=asked.name, provider=asked.provider
        )
        return answer(await engine.sessions.view(id), 201)

    @app.get("/v1/system/df", **gives(Costs))
    async def df() -> Response:
        return answer(await engine.housekeeping.costs())

    @app.post("/v1/system/reconcile", **gives(Reconciled))
    async def reconcile() -> Response:
        return answer(await engine.reconciler.run())

    @app.post("/v1/system/prune", **gives(Pruned))
    async def prune(all: bool = False, dry_run: bool = False) -> Response:
        return answer(await engine.housekeeping.prune(all=all, dry_run=dry_run))
