"""A small Instant of the tests: it keeps what it is told, and complains as the real one does, mostly with a 400."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.leaks import MARK

TWO_WEEKS = 14 * 86_400
Handler = Callable[[Request, dict[str, Any]], Response]


class Complaint(Exception):
    def __init__(self, kind: str, message: str, **hint: object) -> None:
        super().__init__(message)
        self.answer = JSONResponse({"type": kind, "message": message, "hint": hint, "trace-id": "0af7"}, 400)


@dataclass
class Service:
    """`token` is what the account's owner shows. `apps` are by id, temporary ones among them."""

    token: str
    apps: dict[str, dict[str, Any]] = field(default_factory=dict)
    temporary: set[str] = field(default_factory=set)
    perms: dict[str, Any] = field(default_factory=dict)
    schemas: dict[str, Any] = field(default_factory=dict)

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                self._route("POST", "/dash/apps/ephemeral", self._make_temporary),
                self._route("GET", "/dash/apps/ephemeral/{id}", self._temporary),
                self._route("GET", "/superadmin/apps", self._owned(lambda _request, _body: self._all())),
                self._route("POST", "/superadmin/apps", self._owned(self._make)),
                self._route("GET", "/superadmin/apps/{id}", self._owned(self._one)),
                self._route("POST", "/superadmin/apps/{id}", self._owned(self._rename)),
                self._route("DELETE", "/superadmin/apps/{id}", self._owned(self._delete)),
                self._route("GET", "/superadmin/apps/{id}/schema", self._owned(self._schema)),
                self._route("GET", "/superadmin/apps/{id}/perms", self._owned(self._perms)),
                self._route("POST", "/superadmin/apps/{id}/perms", self._owned(self._set_perms)),
            ]
        )

    def _route(self, method: str, path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            body = await request.body()
            try:
                return handler(request, json.loads(body) if body else {})
            except Complaint as complaint:
                return complaint.answer

        answering: Callable[[Request], Awaitable[Response]] = endpoint
        return Route(path, answering, methods=[method])

    def _owned(self, handler: Handler) -> Handler:
        def checked(request: Request, body: dict[str, Any]) -> Response:
            shown = request.headers.get("authorization", "")
            if not shown:
                raise Complaint("param-missing", 'Missing parameter: ["headers" "authorization"]')
            if shown != f"Bearer {self.token}":
                kind = {"record-type": "instant-user", "args": [shown]}
                raise Complaint("record-not-found", "Record not found: instant-user", **kind)
            return handler(request, body)

        return checked

    # --- what it does

    def _make_temporary(self, _request: Request, body: dict[str, Any]) -> Response:
        app = self._new(body, body.get("rules", {}).get("code"))
        self.temporary.add(app["id"])
        return JSONResponse(self._expiring(app))

    def _temporary(self, request: Request, _body: dict[str, Any]) -> Response:
        app = self._found(request)
        if app["id"] not in self.temporary:
            raise Complaint("permission-denied", "Permission denied: not ephemeral-app?", input=app["id"])
        return JSONResponse(self._expiring({name: value for name, value in app.items() if name != "admin-token"}))

    def _make(self, _request: Request, body: dict[str, Any]) -> Response:
        app = self._new(body, body.get("perms"))
        return JSONResponse({"app": {**app, "perms": body.get("perms"), "schema": self.schemas[app["id"]]}})

    def _all(self) -> Response:
        return JSONResponse({"apps": [app for id, app in self.apps.items() if id not in self.temporary]})

    def _one(self, request: Request, _body: dict[str, Any]) -> Response:
        return JSONResponse({"app": self._found(request)})

    def _rename(self, request: Request, body: dict[str, Any]) -> Response:
        app = self._found(request)
        app["title"] = self._title(body)
        return JSONResponse({"app": app})

    def _delete(self, request: Request, _body: dict[str, Any]) -> Response:
        app = self._found(request)
        return JSONResponse({"app": self.apps.pop(app["id"])})

    def _schema(self, request: Request, _body: dict[str, Any]) -> Response:
        return JSONResponse({"schema": self.schemas[self._found(request)["id"]]})

    def _perms(self, request: Request, _body: dict[str, Any]) -> Response:
        return JSONResponse({"perms": self.perms.get(self._found(request)["id"])})

    def _set_perms(self, request: Request, body: dict[str, Any]) -> Response:
        id = self._found(request)["id"]
        self.perms[id] = self._rules(body.get("code"))
        return JSONResponse({"rules": {"app_id": id, "code": self.perms[id]}})

    def _new(self, body: dict[str, Any], perms: Any) -> dict[str, Any]:
        title, rules = self._title(body), self._rules(perms)
        app: dict[str, Any] = {
            "id": str(uuid4()),
            "title": title,
            "created_at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "creator_id": str(uuid4()),
            "org_id": body.get("org_id"),
            "admin-token": f"{MARK}-{uuid4()}",
        }
        self.apps[app["id"]] = app
        self.schemas[app["id"]] = {"refs": {}, "blobs": (body.get("schema") or {}).get("entities", {})}
        if rules is not None:
            self.perms[app["id"]] = rules
        return app

    def _found(self, request: Request) -> dict[str, Any]:
        id = request.path_params["id"]
        try:
            UUID(id)
        except ValueError:
            raise Complaint("param-malformed", 'Malformed parameter: ["params" "app_id"]') from None
        if id not in self.apps:
            raise Complaint("record-not-found", "Record not found: app", **{"record-type": "app"})
        return self.apps[id]

    @staticmethod
    def _title(body: dict[str, Any]) -> str:
        if not isinstance(title := body.get("title"), str) or not title.strip():
            raise Complaint("param-missing", 'Missing parameter: ["body" "title"]')
        return title

    @staticmethod
    def _rules(code: Any) -> Any:
        if code is not None and any(not isinstance(rule, dict) for rule in code.values()):
            raise Complaint("validation-failed", "Validation failed for rule: todos is no object")
        return code

    @staticmethod
    def _expiring(app: dict[str, Any]) -> dict[str, Any]:
        made = datetime.fromisoformat(app["created_at"]).timestamp()
        return {"app": app, "expires_ms": int((made + TWO_WEEKS) * 1000)}
