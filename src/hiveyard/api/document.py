"""The OpenAPI document: its schemas are made from the very structs that are read and written."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hiveyard.api.bodies import (
    BuildLine,
    End,
    ExportAsked,
    Image,
    ImportAsked,
    PortAsked,
    Problem,
    Prompt,
    Removed,
    ResumeAsked,
    RewindAsked,
    SnapshotAsked,
    SshConfig,
    TerminalAsked,
    TerminalProgram,
    TurnTaken,
    Version,
)
from hiveyard.core.events import Event
from hiveyard.engine.archive.exporting import Exported
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.sessions.view import OpenPort, SessionView
from hiveyard.engine.snapshots.compare import Compared
from hiveyard.engine.snapshots.fork import Forked, ForkRequest
from hiveyard.engine.snapshots.service import SnapshotView
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.engine.tasks.view import TaskView
from hiveyard.engine.upkeep.doctor import Check
from hiveyard.engine.upkeep.housekeeping import Costs, Pruned
from hiveyard.engine.workspace.result import ResultLocation

_ASKED = (TaskRequest, SpawnRequest, ResumeAsked, Prompt, TerminalAsked, PortAsked)
_ANSWERED = (TaskView, SessionView, TurnTaken, TerminalProgram, ResultLocation, Image, Check, Version, Removed, Problem)
_OF_REACH = (OpenPort, SshConfig)
_OF_SNAPSHOTS = (SnapshotAsked, ForkRequest, RewindAsked, SnapshotView, Forked, Compared)
_OF_THE_SYSTEM = (ExportAsked, ImportAsked, Exported, Costs, Pruned)
_STREAMED = (Event, BuildLine, End)
BODIES = (*_ASKED, *_ANSWERED, *_OF_REACH, *_OF_SNAPSHOTS, *_OF_THE_SYSTEM, *_STREAMED)
_REF = "#/components/schemas/{name}"


def takes(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """For a route that reads a body of this kind."""
    return {"openapi_extra": {"requestBody": {"required": True, "content": _json(kind)}}}


def gives(kind: Any, status: int = 200, description: str = "done") -> dict[str, Any]:
    """For a route that answers with a body of this kind: a struct of BODIES, or a list of them."""
    return {"status_code": status, "responses": {status: {"description": description, "content": _json(kind)}}}


def streams(*kinds: Any) -> dict[str, Any]:
    """For a route that answers with server-sent events whose data are such bodies, `event: end` at their end."""
    schemas = [_schema(kind) for kind in (*kinds, End)]
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": schemas}}
    item = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    content = {"text/event-stream": {"itemSchema": item}}
    return {"responses": {200: {"description": "events as they come", "content": content}}}


def describe(app: FastAPI) -> None:
    """Let the application give out its document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, schemas = msgspec.json.schema_components(BODIES, ref_template=_REF)
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, openapi_version="3.2.0", routes=app.routes
            )
            app.openapi_schema.setdefault("components", {})["schemas"] = schemas
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _json(kind: Any) -> dict[str, Any]:
    return {"application/json": {"schema": _schema(kind)}}


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components((kind,), ref_template=_REF)
    return schema


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "what was asked for cannot be", "content": _json(Problem)},
    "5XX": {"description": "Hiveyard could not do it", "content": _json(Problem)},
}
"""What every route may answer besides."""
