"""Make the OpenAPI document. Its schemas come from the structs that the routes read and write."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hiveyard.api.bodies import (
    BuildLine,
    End,
    ExportRequest,
    Image,
    ImportRequest,
    MailRead,
    ModelChoice,
    NapRequest,
    PortRequest,
    Problem,
    Prompt,
    Removed,
    ResumeRequest,
    RewindRequest,
    SnapshotRequest,
    SshConfig,
    TerminalProgram,
    TerminalRequest,
    TurnAccepted,
    Version,
    WebDevice,
    WebLink,
    WebLinkRequest,
)
from hiveyard.core.events import Event
from hiveyard.engine.archive.exporting import Exported
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.sessions.steering import AskAnswer, AskView
from hiveyard.engine.sessions.view import OpenPort, SessionView
from hiveyard.engine.snapshots.compare import Compared
from hiveyard.engine.snapshots.fork import Forked, ForkRequest
from hiveyard.engine.snapshots.service import SnapshotView
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.engine.tasks.view import TaskView
from hiveyard.engine.upkeep.doctor import Check
from hiveyard.engine.upkeep.housekeeping import Costs, Pruned
from hiveyard.engine.upkeep.reconciler import Reconciled
from hiveyard.engine.workspace.result import ResultLocation
from hiveyard.hive.mailbox import MessageRequest, Sent
from hiveyard.hive.members import MemberRequest, MemberView, MessageView, ReminderView
from hiveyard.kit.secret import Secret

_REQUESTS = (TaskRequest, SpawnRequest, ResumeRequest, Prompt, TerminalRequest, PortRequest, ModelChoice, AskAnswer)
_ANSWERS = (
    TaskView,
    SessionView,
    AskView,
    TurnAccepted,
    TerminalProgram,
    ResultLocation,
    Image,
    Check,
    Version,
    Removed,
    Problem,
)
_FOR_ACCESS = (OpenPort, SshConfig)
_FOR_SNAPSHOTS = (SnapshotRequest, ForkRequest, RewindRequest, SnapshotView, Forked, Compared)
_FOR_THE_SYSTEM = (ExportRequest, ImportRequest, Exported, Costs, Pruned, Reconciled)
_FOR_THE_PAGE = (WebLinkRequest, WebLink, WebDevice)
_FOR_THE_HIVE = (MemberRequest, MemberView, MessageRequest, MessageView, Sent, ReminderView, NapRequest, MailRead)
_SPECIAL = (*_FOR_ACCESS, *_FOR_SNAPSHOTS, *_FOR_THE_SYSTEM, *_FOR_THE_PAGE, *_FOR_THE_HIVE)
_STREAMS = (Event, BuildLine, End)
BODIES = (*_REQUESTS, *_ANSWERS, *_SPECIAL, *_STREAMS)
_REF = "#/components/schemas/{name}"


def takes(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the arguments of a route that reads a body of this kind."""
    return {"openapi_extra": {"requestBody": {"required": True, "content": _json(kind)}}}


def gives(kind: Any, status: int = 200, description: str = "done") -> dict[str, Any]:
    """Return the arguments of a route that answers with a body of this kind: a struct of BODIES, or a list of one."""
    return {"status_code": status, "responses": {status: {"description": description, "content": _json(kind)}}}


def streams(*kinds: Any) -> dict[str, Any]:
    """Return the arguments of a route that answers with server-sent events of these bodies, and `event: end` last."""
    schemas = [_schema(kind) for kind in (*kinds, End)]
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": {"anyOf": schemas}}
    item = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    content = {"text/event-stream": {"itemSchema": item}}
    return {"responses": {200: {"description": "events as they come", "content": content}}}


def describe(app: FastAPI) -> None:
    """Let the application serve its OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, schemas = msgspec.json.schema_components(BODIES, schema_hook=_secret, ref_template=_REF)
            app.openapi_schema = get_openapi(
                title=app.title, version=app.version, openapi_version="3.2.0", routes=app.routes
            )
            app.openapi_schema.setdefault("components", {})["schemas"] = schemas
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _json(kind: Any) -> dict[str, Any]:
    return {"application/json": {"schema": _schema(kind)}}


def _schema(kind: Any) -> dict[str, Any]:
    (schema,), _ = msgspec.json.schema_components((kind,), schema_hook=_secret, ref_template=_REF)
    return schema


def _secret(kind: type) -> dict[str, Any]:
    """Return the schema of the only type that msgspec does not know."""
    if kind is not Secret:
        raise NotImplementedError
    return {"type": "string"}


PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "the request is not possible", "content": _json(Problem)},
    "5XX": {"description": "Hiveyard failed", "content": _json(Problem)},
}
"""The errors that every route may answer with."""
