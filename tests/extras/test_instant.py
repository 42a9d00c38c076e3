"""Databases of Instant, made and looked after at a service of the tests; and all that can go wrong with one."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import anyio
import pytest
from anyio.abc import SocketStream

from hiveyard.core.errors import (
    BadInput,
    BadSetting,
    HiveyardError,
    ServiceBadAnswer,
    ServiceFailed,
    ServiceNotFound,
    ServiceRateLimited,
    ServiceRefused,
    ServiceTimeout,
    ServiceUnauthorized,
    ServiceUnreachable,
)
from hiveyard.extras.instant import Instant, InstantSettings
from hiveyard.kit.secret import Secret
from tests.door.upstream import Answer, Request, upstream, whole
from tests.extras.instant_service import TWO_WEEKS, Service
from tests.support.leaks import Said, listening
from tests.support.morph_cloud import served

pytestmark = pytest.mark.anyio

TOKEN = "per_Zq8TestSecret+/a secret & token?=of-this-test"
ID = "0b9d4a5e-7c1f-4e0a-9a55-3f7c2b1d8e60"
APP: dict[str, Any] = {"id": ID, "title": "one", "created_at": "2026-11-22T00:00:00Z", "org_id": None}
PERMS = {"todos": {"allow": {"view": "true", "$default": "false"}}}
SCHEMA: dict[str, Any] = {"entities": {"todos": {"attrs": {}, "links": {}}}, "links": {}, "rooms": {}}


@pytest.fixture(autouse=True)
def said() -> Iterator[Said]:
    with listening() as said:
        yield said
    said.none_of([TOKEN])


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Service, str]]:
    service = Service(TOKEN)
    with served(service.app()) as url:
        yield service, url


@pytest.fixture
async def instant(service: tuple[Service, str]) -> AsyncIterator[Instant]:
    async with Instant(Secret(TOKEN), InstantSettings(url=service[1])) as instant:
        yield instant


# --- what it does ---------------------------------------------------------------------------------------------------


async def test_a_temporary_database_needs_no_token_and_says_when_it_ends(service: tuple[Service, str]) -> None:
    async with Instant(settings=InstantSettings(url=service[1])) as nobody:
        made = await nobody.create_temporary("a test", schema=SCHEMA, perms=PERMS)
        assert made.app.title == "a test" and made.app.admin_token
        assert made.expires_at - made.app.created_at == timedelta(seconds=TWO_WEEKS)
        again = await nobody.temporary(made.app.id)
        assert (again.app.id, again.expires_at, again.app.admin_token) == (made.app.id, made.expires_at, None)
        assert service[0].perms[str(made.app.id)] == PERMS
        assert service[0].schemas[str(made.app.id)]["blobs"] == SCHEMA["entities"]
        with pytest.raises(ServiceNotFound, match="Record not found: app"):
            await nobody.temporary(uuid4())


async def test_a_long_lived_database_is_made_found_renamed_and_deleted(instant: Instant) -> None:
    made = await instant.create("shop", schema=SCHEMA, perms=PERMS)
    assert isinstance(made.id, UUID) and made.admin_token and made.org is None
    assert made in await instant.apps()
    assert (await instant.rename(str(made.id), 'ü\'s "shop"')).title == 'ü\'s "shop"'
    assert (await instant.app(made.id)).title == 'ü\'s "shop"'
    assert (await instant.schema(made.id))["blobs"] == SCHEMA["entities"]
    await instant.delete(made.id)
    await instant.delete(made.id)
    with pytest.raises(ServiceNotFound):
        await instant.app(made.id)
    assert made.id not in [app.id for app in await instant.apps()]


async def test_permissions_are_replaced_and_what_is_wrong_with_them_is_said(instant: Instant) -> None:
    made = await instant.create("rules", org=(org := uuid4()))
    assert made.org == org
    assert await instant.perms(made.id) == {}
    await instant.set_perms(made.id, PERMS)
    assert await instant.perms(made.id) == PERMS
    with pytest.raises(ServiceRefused, match="400: Validation failed for rule: todos is no object"):
        await instant.set_perms(made.id, {"todos": "yes"})
    assert await instant.perms(made.id) == PERMS
    with pytest.raises(ServiceUnauthorized, match="not ephemeral-app"):
        await instant.temporary(made.id)
    await instant.delete(made.id)


async def test_a_token_that_nobody_has_is_told_from_a_database_that_is_not_there(service: tuple[Service, str]) -> None:
    async with Instant(Secret("another Zq8TestSecret"), InstantSettings(url=service[1])) as stranger:
        for call in (stranger.apps(), stranger.app(uuid4()), stranger.delete(uuid4())):
            with pytest.raises(ServiceUnauthorized) as raised:
                await call
            assert "dashboard of Instant" in raised.value.hint


async def test_no_admin_token_is_shown(instant: Instant) -> None:
    made = await instant.create("quiet")
    assert made.admin_token and made.admin_token.reveal() not in f"{made!r} {made}"
    await instant.delete(made.id)


# --- what is asked for wrongly --------------------------------------------------------------------------------------


async def test_what_cannot_be_is_told_before_anything_is_asked() -> None:
    async with Instant(Secret(TOKEN), InstantSettings(url="http://127.0.0.1:9", patience=0.01)) as instant:
        for title in ("", " \n", "x" * 1001, "a\0b"):
            with pytest.raises(BadInput, match="is no title"):
                await instant.create_temporary(title)
        for id in ("", "../dash", "a b", "5"):
            with pytest.raises(BadInput, match="is not an Instant id"):
                await instant.app(id)
        documents: tuple[Any, ...] = ([], {"a": float("nan")}, {"a": object()}, {"a": "x" * (1 << 20)}, "text")
        for document in documents:
            with pytest.raises(BadInput, match=r"^perms "):
                await instant.set_perms(uuid4(), document)
    async with Instant(settings=InstantSettings(url="http://127.0.0.1:9")) as nobody:
        with pytest.raises(BadInput, match="need a token"):
            await nobody.apps()


@pytest.mark.parametrize("url", ["http://api.example", "ftp://127.0.0.1", "", "http://127.0.0.1.example", "http://["])
def test_a_token_is_sent_over_https_or_to_this_host(url: str) -> None:
    with pytest.raises(BadSetting, match="https://"):
        InstantSettings(url=url)


# --- what goes wrong at the service ---------------------------------------------------------------------------------


@asynccontextmanager
async def asking(
    answer: Answer, *, timeout: float = 5.0, patience: float = 0.01
) -> AsyncIterator[tuple[Instant, list[Request]]]:
    async with upstream(answer) as server:
        settings = InstantSettings(url=server.url, request_timeout=timeout, patience=patience, answer_mib=1)
        async with Instant(Secret(TOKEN), settings) as instant:
            yield instant, server.requests


async def refused(answer: Answer, said: Said, *, timeout: float = 5.0) -> HiveyardError:
    async with asking(answer, timeout=timeout) as (instant, _):
        with pytest.raises(HiveyardError) as raised:
            await instant.apps()
    said.add(f"{raised.value.message} {raised.value.hint} {raised.value.context} {raised.value!r}")
    assert len(said.lines[-1]) < 2000 and "\n" not in raised.value.message
    return raised.value


@pytest.mark.parametrize(
    ("status", "type", "kind"),
    [
        (400, "param-malformed", ServiceRefused), (400, "record-not-found", ServiceNotFound),
        (400, "record-expired", ServiceUnauthorized), (400, "permission-denied", ServiceUnauthorized),
        (400, "", ServiceRefused), (401, "", ServiceUnauthorized), (403, "", ServiceUnauthorized),
        (404, "", ServiceNotFound), (409, "", ServiceRefused), (429, "rate-limited", ServiceRateLimited),
        (500, "sql-exception", ServiceFailed), (503, "", ServiceFailed), (302, "", ServiceBadAnswer),
    ],
)  # fmt: skip
async def test_each_complaint_is_an_error_of_its_own_that_says_why(
    status: int, type: str, kind: type[HiveyardError], said: Said
) -> None:
    forms = f"{quote(TOKEN, safe='')} {b64encode(TOKEN.encode()).decode()}"
    message = f"no {TOKEN} here \x1b[31m {forms}"
    body = {"type": type, "message": message, "hint": {"args": [TOKEN], "record-type": "app"}}
    error = await refused(whole(json.dumps(body).encode(), status=status), said)
    assert error.__class__ is kind
    assert f"{status}: no *** here" in error.message


@pytest.mark.parametrize("body", [b"[]", b"null", b'{"type": 5}', b"{", b"\xff", b'{"hint": [[[', b"[" * 90_000])
async def test_a_complaint_of_any_form_is_still_the_status_that_it_has(body: bytes, said: Said) -> None:
    assert isinstance(await refused(whole(body, status=400), said), ServiceRefused)


async def test_a_page_of_html_is_no_answer_and_is_not_repeated_to_anybody(said: Said) -> None:
    page = b"<html><body>blocked by the proxy</body></html>"
    assert isinstance(await refused(whole(page, kind="text/html"), said), ServiceBadAnswer)
    failed = await refused(whole(page, kind="text/html", status=502), said)
    assert isinstance(failed, ServiceFailed) and "proxy" not in failed.message


def _apps(**changed: object) -> bytes:
    return json.dumps({"apps": [{**APP, **changed}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", _apps()[:40], b"{}", b"[]", b'{"apps": null}', b"\xff", b"[" * 90_000, _apps(id="../x"),
        _apps(id=5), _apps(created_at="yesterday"), _apps(title=None), _apps(org_id="mine"),
        _apps(**{"admin-token": 1}),
    ],
)  # fmt: skip
async def test_an_answer_that_breaks_its_schema_is_told_as_such(body: bytes, said: Said) -> None:
    assert isinstance(await refused(whole(body), said), ServiceBadAnswer)


@pytest.mark.parametrize("expires", [None, -1, 10**18, "soon", 1.5])
async def test_an_end_that_cannot_be_is_told_as_such(expires: object) -> None:
    body = json.dumps({"app": APP, "expires_ms": expires}).encode()
    async with asking(whole(body)) as (instant, _):
        with pytest.raises(ServiceBadAnswer):
            await instant.temporary(ID)


async def test_an_answer_that_is_cut_in_half_is_a_broken_connection(said: Said) -> None:
    async def cut(_request: Request, stream: SocketStream) -> None:
        head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 200\r\n\r\n"
        await stream.send(head.encode() + _apps()[:40])
        await stream.aclose()

    assert isinstance(await refused(cut, said), ServiceUnreachable)


async def test_an_answer_that_is_not_compressed_as_it_says_is_none(said: Said) -> None:
    answer = whole(_apps(), more="content-encoding: gzip\r\n")
    assert isinstance(await refused(answer, said), ServiceBadAnswer)


async def test_an_answer_of_50_mb_is_not_read_to_its_end(said: Said) -> None:
    sent = 0

    async def flood(_request: Request, stream: SocketStream) -> None:
        nonlocal sent
        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 52428800\r\n\r\n")
        for _ in range(800):
            await stream.send(bytes(65536))
            sent += 65536

    assert isinstance(await refused(flood, said), ServiceBadAnswer)
    assert sent < 30 << 20


async def test_silence_is_a_timeout_and_nobody_there_is_unreachable(said: Said) -> None:
    async def silent(_request: Request, stream: SocketStream) -> None:
        await stream.receive()

    assert isinstance(await refused(silent, said, timeout=0.3), ServiceTimeout)
    async with Instant(settings=InstantSettings(url="http://127.0.0.1:9", patience=0.01)) as instant:
        with pytest.raises(ServiceUnreachable):
            await instant.create_temporary("a test")


@pytest.mark.parametrize("first", [429, 500, 503])
async def test_what_may_pass_is_asked_again(first: int) -> None:
    answers = [whole(b"{}", status=first, more="retry-after: 0\r\n"), whole(_apps())]

    async def answer(request: Request, stream: SocketStream) -> None:
        await answers.pop(0)(request, stream)

    async with asking(answer, patience=30) as (instant, requests):
        (app,) = await instant.apps()
        assert app.created_at == datetime(2026, 11, 22, tzinfo=UTC)
    assert [request.header("authorization") for request in requests] == [f"Bearer {TOKEN}"] * 2


async def test_a_service_that_wants_to_be_left_alone_for_long_is() -> None:
    answer = whole(b"{}", status=429, more="retry-after: 7200\r\n")
    async with asking(answer, patience=30) as (instant, requests):
        with pytest.raises(ServiceRateLimited) as raised:
            await instant.apps()
    assert raised.value.retry_after == 7200 and len(requests) == 1


async def test_what_makes_something_is_not_asked_for_twice_and_without_a_token_none_is_shown() -> None:
    async with asking(whole(b"{}", status=500), patience=30) as (instant, requests):
        for making in (instant.create("one"), instant.create_temporary("one")):
            with pytest.raises(ServiceFailed):
                await making
    assert [request.header("authorization") for request in requests] == [f"Bearer {TOKEN}", None]


async def test_a_call_can_be_cancelled() -> None:
    asked = anyio.Event()

    async def silent(_request: Request, stream: SocketStream) -> None:
        asked.set()
        await stream.receive()

    async with asking(silent, timeout=60) as (instant, _), anyio.create_task_group() as group:
        group.start_soon(instant.apps)
        with anyio.fail_after(20):
            await asked.wait()
        group.cancel_scope.cancel()
