"""Databases of Instant by its Platform API: temporary ones, which need no account and delete themselves after two
weeks, and long-lived ones, which need a token.

    async with Instant() as instant:
        made = await instant.create_temporary("a test")
        made.app.id, made.app.admin_token, made.expires_at

    async with Instant(Secret(token)) as instant:
        app = await instant.create("shop", perms={"$default": {"allow": {"$default": "false"}}})

A database is called an app there. `schema` and `perms` are JSON objects of the forms that Instant's documentation gives
them. Every call raises ServiceRefused, ServiceUnauthorized, ServiceNotFound, ServiceRateLimited, ServiceFailed,
ServiceUnreachable, ServiceTimeout, ServiceBadAnswer, or BadInput before anything is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import msgspec

from hiveyard.core.errors import (
    BadInput,
    BadSetting,
    ServiceBadAnswer,
    ServiceFailed,
    ServiceNotFound,
    ServiceRateLimited,
    ServiceRefused,
    ServiceTimeout,
    ServiceUnauthorized,
    ServiceUnreachable,
)
from hiveyard.kit.address import loopback
from hiveyard.kit.responses import Answers, ErrorDetail, Kinds
from hiveyard.kit.rest import Limits, RestClient
from hiveyard.kit.secret import Secret

T = TypeVar("T")
Document = Mapping[str, Any]
"""A JSON object."""
_KINDS = Kinds(
    refused=ServiceRefused,
    unauthorized=ServiceUnauthorized,
    not_found=ServiceNotFound,
    rate_limited=ServiceRateLimited,
    failed=ServiceFailed,
    unreachable=ServiceUnreachable,
    timeout=ServiceTimeout,
    bad_answer=ServiceBadAnswer,
)
_LARGEST = 1 << 20
_LONGEST_TITLE = 1000
_TOKEN_HINT = "a personal access token of your account, from the dashboard of Instant"  # noqa: S105
_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_000)]  # to the end of the year 9999


class App(msgspec.Struct, frozen=True, kw_only=True):
    """A database. `admin_token` reads and writes all of its data; the service may leave it away where the app was not
    just made. `org` is the organisation it belongs to, None for the account's own."""

    id: UUID
    title: str
    created_at: datetime
    admin_token: Secret | None = None
    org: UUID | None = None


class TemporaryApp(NamedTuple):
    """A database that deletes itself some time after `expires_at`."""

    app: App
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class InstantSettings:
    """Address of the service, seconds that one request may take, seconds for which what may pass is tried again, and
    the largest answer that is read, in MiB."""

    url: str = "https://api.instantdb.com"
    request_timeout: float = 30.0
    patience: float = 60.0
    answer_mib: int = 16

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            safe = parts.scheme == "https" or (parts.scheme == "http" and loopback(parts.hostname or ""))
        except ValueError:
            safe = False
        if not safe:
            raise BadSetting(f"url is {self.url[:200]!r}: tokens go there, so it begins with https://")


class Instant:
    """The Platform API. Without a `token` there are only temporary databases. Used as `async with`.

    What makes something is not asked for twice, except when it was certainly not done. When its answer is lost, nobody
    knows whether it was made: `apps` tells, and a temporary one goes by itself."""

    def __init__(self, token: Secret | None = None, settings: InstantSettings | None = None) -> None:
        settings = settings or InstantSettings()
        limits = Limits(request=settings.request_timeout, patience=settings.patience, answer=settings.answer_mib << 20)
        answers = Answers("instant", _KINDS, _complaint, key_hint=_TOKEN_HINT)
        self._rest = RestClient(settings.url.rstrip("/"), answers, limits)
        self._token = token

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self._rest.aclose()

    # --- temporary databases -------------------------------------------------------------------------------------

    async def create_temporary(
        self, title: str, *, schema: Document | None = None, perms: Document | None = None
    ) -> TemporaryApp:
        """Create a database for two weeks that belongs to no account. Only this answer contains its `admin_token`."""
        body: dict[str, object] = {"title": _title(title), **_documents(schema=schema)}
        if perms is not None:
            body["rules"] = {"code": _document("perms", perms)}
        made = await self._rest.ask("POST", "/dash/apps/ephemeral", _Expiring, key=None, body=body, again=False)
        return made.told()

    async def temporary(self, id: UUID | str) -> TemporaryApp:
        """Return an existing temporary database. Raises ServiceUnauthorized for one that is not temporary."""
        found = await self._rest.ask("GET", f"/dash/apps/ephemeral/{_id(id)}", _Expiring, key=None)
        return found.told()

    # --- permanent databases -------------------------------------------------------------------------------------

    async def create(
        self,
        title: str,
        *,
        org: UUID | str | None = None,
        schema: Document | None = None,
        perms: Document | None = None,
    ) -> App:
        """Create a database that exists until it is deleted."""
        body: dict[str, object] = {"title": _title(title), **_documents(schema=schema, perms=perms)}
        if org is not None:
            body["org_id"] = _id(org)
        return (await self._ask("POST", "/superadmin/apps", _One, body=body, again=False)).app.told()

    async def apps(self) -> list[App]:
        """Return all databases of the token's account."""
        return [app.told() for app in (await self._ask("GET", "/superadmin/apps", _Many)).apps]

    async def app(self, id: UUID | str) -> App:
        return (await self._ask("GET", f"/superadmin/apps/{_id(id)}", _One)).app.told()

    async def rename(self, id: UUID | str, title: str) -> App:
        body = {"title": _title(title)}
        return (await self._ask("POST", f"/superadmin/apps/{_id(id)}", _One, body=body)).app.told()

    async def delete(self, id: UUID | str) -> None:
        """Delete a database. An absent one is a success."""
        try:
            await self._ask("DELETE", f"/superadmin/apps/{_id(id)}", _One)
        except ServiceNotFound:
            return

    async def schema(self, id: UUID | str) -> Document:
        """Return the schema in the service's format, which differs from the one that is sent."""
        return (await self._ask("GET", f"/superadmin/apps/{_id(id)}/schema", _Schema)).schema

    async def perms(self, id: UUID | str) -> Document:
        """Return the rules; empty if there are none."""
        return (await self._ask("GET", f"/superadmin/apps/{_id(id)}/perms", _Perms)).perms or {}

    async def set_perms(self, id: UUID | str, perms: Document) -> None:
        """Replace all rules."""
        body = {"code": _document("perms", perms)}
        await self._ask("POST", f"/superadmin/apps/{_id(id)}/perms", _Rules, body=body)

    async def _ask(self, method: str, path: str, kind: type[T], *, body: object = None, again: bool = True) -> T:
        if not self._token:
            raise BadInput("long-lived databases need a token, and there is none", hint=_TOKEN_HINT)
        return await self._rest.ask(method, path, kind, key=self._token, body=body, again=again)


# --- what the service says ------------------------------------------------------------------------------------------


class _App(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of an answer. Other fields are ignored; a missing or malformed one is an error."""

    id: UUID
    title: str
    created_at: datetime
    org_id: UUID | None = None
    admin_token: str | None = msgspec.field(default=None, name="admin-token")

    def told(self) -> App:
        token = None if self.admin_token is None else Secret(self.admin_token)
        return App(id=self.id, title=self.title, created_at=self.created_at, admin_token=token, org=self.org_id)


class _One(msgspec.Struct, frozen=True):
    app: _App


class _Many(msgspec.Struct, frozen=True):
    apps: list[_App]


class _Expiring(msgspec.Struct, frozen=True):
    app: _App
    expires_ms: _Milliseconds

    def told(self) -> TemporaryApp:
        return TemporaryApp(self.app.told(), datetime.fromtimestamp(self.expires_ms / 1000, UTC))


class _Schema(msgspec.Struct, frozen=True):
    schema: dict[str, Any]


class _Perms(msgspec.Struct, frozen=True):
    perms: dict[str, Any] | None = None


class _Rules(msgspec.Struct, frozen=True):
    rules: dict[str, Any]


class _Said(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""
    hint: Any = None


# 400 is what the service says for most that is wrong; its `type` tells what it is.
_STATUS = {"record-expired": 401, "permission-denied": 403}
_OF_TOKENS = ("token", "instant-user")


def _complaint(status: int, body: bytes) -> ErrorDetail:
    try:
        said = msgspec.json.decode(body, type=_Said)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorDetail(status, "")
    if status == 400 and said.type == "record-not-found":
        record = said.hint.get("record-type") if isinstance(said.hint, dict) else said.message
        # The answer to an unknown token has this form, too.
        status = 401 if any(word in str(record) for word in _OF_TOKENS) else 404
    elif status == 400:
        status = _STATUS.get(said.type, status)
    return ErrorDetail(status, said.message)


# --- what is asked for, checked before it is ------------------------------------------------------------------------


def _title(title: str) -> str:
    if not title.strip() or len(title) > _LONGEST_TITLE or "\0" in title or not _is_text(title):
        raise BadInput(
            f"{title[:80]!r} is no title: 1 to {_LONGEST_TITLE} characters, not all blank, no NUL, no half of a pair"
        )
    return title


def _is_text(text: str) -> bool:
    """Return whether a text can be sent: half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _id(id: UUID | str) -> str:
    try:
        return str(id if isinstance(id, UUID) else UUID(id))
    except ValueError:
        raise BadInput(f"{str(id)[:80]!r} is not an Instant id: an id is a UUID") from None


def _documents(**given: Document | None) -> dict[str, object]:
    return {name: _document(name, value) for name, value in given.items() if value is not None}


def _document(name: str, value: Document) -> Document:
    try:
        size = len(json.dumps(value, allow_nan=False).encode())
        json.dumps(value, ensure_ascii=False).encode()  # as it is sent: what is no text is an error here
    except (TypeError, ValueError, RecursionError) as error:
        raise BadInput(f"{name} cannot be JSON: {error}") from error
    if not isinstance(value, dict) or size > _LARGEST:
        raise BadInput(f"{name} is a JSON object of at most {_LARGEST} bytes")
    return value
