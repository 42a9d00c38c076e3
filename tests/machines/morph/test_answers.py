"""Bad answers of a cloud are told apart and bounded, and never contain the key."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import anyio
import pytest
from anyio.abc import SocketStream

from hiveyard.core.errors import (
    HasRetryAfter,
    HiveyardError,
    KeyMissing,
    ProviderBadAnswer,
    ProviderFailed,
    ProviderNotFound,
    ProviderRateLimited,
    ProviderRefused,
    ProviderTimeout,
    ProviderUnauthorized,
    ProviderUnavailable,
    ProviderUnreachable,
)
from hiveyard.core.machines import MachineStatus
from hiveyard.kit.secret import Secret
from hiveyard.machines.morph import MorphSettings, labels
from hiveyard.machines.morph.client import Client
from hiveyard.machines.morph.service import Service
from hiveyard.machines.morph.statuses import status_of
from hiveyard.machines.morph.wire import Instance, Networking
from tests.door.upstream import Answer, Request, upstream, whole

pytestmark = pytest.mark.anyio
KEY = "morph_Zq8TestSecret"
IMAGES = json.dumps({"object": "list", "data": [{"id": "img", "created": 1, "name": "img", "disk_size": 1}]}).encode()
INSTANCE = {
    "id": "morphvm_1", "created": 1, "status": "ready", "spec": {"vcpus": 1, "memory": 1, "disk_size": 1},
    "refs": {"snapshot_id": "s", "image_id": "i"}, "networking": {}, "ttl": {"ttl_seconds": None, "ttl_action": "stop"},
    "wake_on": {},
}  # fmt: skip


@asynccontextmanager
async def asking(
    answer: Answer, *, timeout: float = 5.0, patience: float = 0.01
) -> AsyncIterator[tuple[Service, list[Request]]]:
    async with upstream(answer) as server:
        settings = MorphSettings(url=server.url, request_timeout=timeout, patience=patience, answer_mib=1)
        client = Client(settings, lambda: Secret(KEY))
        try:
            yield Service(client), server.requests
        finally:
            await client.aclose()


async def refused(answer: Answer, *, timeout: float = 5.0) -> HiveyardError:
    async with asking(answer, timeout=timeout) as (service, _):
        with pytest.raises(HiveyardError) as raised:
            await service.bases()
    shown = f"{raised.value.message} {raised.value.hint} {raised.value.context} {raised.value!r}"
    assert KEY not in shown and len(shown) < 2000 and "\n" not in shown
    return raised.value


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ProviderRefused), (401, ProviderUnauthorized), (403, ProviderUnauthorized), (404, ProviderNotFound),
        (409, ProviderRefused), (422, ProviderRefused), (429, ProviderRateLimited), (500, ProviderFailed),
        (503, ProviderFailed), (302, ProviderBadAnswer),
    ],
)  # fmt: skip
async def test_each_status_is_an_error_of_its_own_that_says_why(status: int, kind: type[HiveyardError]) -> None:
    body = json.dumps({"detail": f"no {KEY} here \x1b[31m"}).encode()
    error = await refused(whole(body, status=status))
    assert type(error) is kind
    assert f"{status}: no *** here" in error.message


async def test_a_violation_names_the_field() -> None:
    body = json.dumps({"detail": [{"loc": ["body", "vcpus"], "msg": "not a number", "type": "int"}]}).encode()
    assert "body.vcpus: not a number" in (await refused(whole(body, status=422))).message


async def test_a_page_of_html_is_no_answer_and_is_not_repeated_to_anybody() -> None:
    page = b"<html><body>blocked by the proxy</body></html>"
    assert isinstance(await refused(whole(page, kind="text/html")), ProviderBadAnswer)
    failed = await refused(whole(page, kind="text/html", status=502))
    assert isinstance(failed, ProviderFailed) and "proxy" not in failed.message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", IMAGES[: len(IMAGES) // 2], b'{"data": [{"id": 5}]}', b"[]", b'{"data": null}', b"\xff", b"[" * 90_000],
    ids=["empty", "open", "half", "number", "list", "null", "bytes", "deep"],
)
async def test_an_answer_that_breaks_its_schema_is_told_as_such(body: bytes) -> None:
    assert isinstance(await refused(whole(body)), ProviderBadAnswer)


@pytest.mark.parametrize("created", [-1, 253_402_300_800, 1_760_000_000_000, 10**400])
async def test_a_machine_that_was_made_at_no_date_is_no_answer(created: int) -> None:
    async with asking(whole(json.dumps({**INSTANCE, "created": created}).encode())) as (service, _):
        with pytest.raises(ProviderBadAnswer, match="created"):
            await service.instance("morphvm_1")


async def test_an_answer_that_is_cut_in_half_is_a_broken_connection() -> None:
    async def cut(_request: Request, stream: SocketStream) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(IMAGES)}\r\n\r\n"
        await stream.send(head.encode() + IMAGES[:20])
        await stream.aclose()

    assert isinstance(await refused(cut), ProviderUnreachable)


async def test_an_answer_of_50_mb_is_not_read_to_its_end() -> None:
    sent = 0

    async def flood(_request: Request, stream: SocketStream) -> None:
        nonlocal sent
        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 52428800\r\n\r\n")
        for _ in range(800):
            await stream.send(bytes(65536))
            sent += 65536

    assert isinstance(await refused(flood), ProviderBadAnswer)
    assert sent < 30 << 20


async def test_silence_and_an_answer_that_only_drips_are_timeouts() -> None:
    async def silent(_request: Request, stream: SocketStream) -> None:
        await stream.receive()

    async def dripping(_request: Request, stream: SocketStream) -> None:
        await stream.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n")
        while True:
            await stream.send(b" ")
            await anyio.sleep(0.05)

    assert isinstance(await refused(silent, timeout=0.3), ProviderTimeout)
    assert isinstance(await refused(dripping, timeout=0.5), ProviderTimeout)


async def test_nobody_there_is_unreachable_and_no_key_is_said_without_asking() -> None:
    client = Client(MorphSettings(url="http://127.0.0.1:9", patience=0.01), lambda: Secret(KEY))
    with pytest.raises(ProviderUnreachable):
        await Service(client).bases()
    await client.aclose()

    def missing() -> Secret:
        raise KeyMissing("there is none", hint="MORPH_API_KEY=… hv serve")

    without = Client(MorphSettings(url="http://127.0.0.1:9"), missing)
    with pytest.raises(ProviderUnavailable, match="no key for morph"):
        await Service(without).bases()
    await without.aclose()


async def test_who_asks_while_it_is_closed_is_answered() -> None:
    async with asking(whole(b'{"data": []}')) as (service, requests):
        for _ in range(3):
            assert await service.instances({}) == []
            async with anyio.create_task_group() as group:
                group.start_soon(service._client.aclose)
                group.start_soon(service.instances, {})
    assert len(requests) == 6


@pytest.mark.parametrize("first", [429, 500, 503])
async def test_what_may_pass_is_asked_again(first: int) -> None:
    answers = [whole(b"{}", status=first, more="retry-after: 0\r\n"), whole(b'{"data": []}')]

    async def answer(request: Request, stream: SocketStream) -> None:
        await answers.pop(0)(request, stream)

    async with asking(answer, patience=30) as (service, requests):
        assert await service.instances({}) == []
    assert len(requests) == 2
    assert all(request.header("authorization") == f"Bearer {KEY}" for request in requests)


@pytest.mark.parametrize(("status", "kind"), [(429, ProviderRateLimited), (503, ProviderFailed)])
@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_service_that_wants_to_be_left_alone_for_long_is(
    form: str, status: int, kind: type[HasRetryAfter]
) -> None:
    later = datetime.now(UTC) + timedelta(seconds=7200)
    said = "7200" if form == "seconds" else format_datetime(later, usegmt=True)
    answer = whole(b"{}", status=status, more=f"retry-after: {said}\r\n")
    async with asking(answer, patience=30) as (service, requests):
        with pytest.raises(kind) as raised:
            await service.instances({})
    assert raised.value.retry_after is not None and 7000 < raised.value.retry_after <= 7200
    assert len(requests) == 1


@pytest.mark.parametrize("said", ["soon", "nan", "1e400", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"])
async def test_a_time_to_come_back_that_is_none_is_not_kept(said: str) -> None:
    async with asking(whole(b"{}", status=429, more=f"retry-after: {said}\r\n"), patience=0.01) as (service, _):
        with pytest.raises(ProviderRateLimited) as raised:
            await service.instances({})
    assert raised.value.retry_after is None


async def test_what_makes_something_is_not_asked_for_twice() -> None:
    async with asking(whole(b"{}", status=500), patience=30) as (service, requests):
        with pytest.raises(ProviderFailed):
            await service.take("morphvm_1", {}, 5)
    assert len(requests) == 1


async def test_an_id_stays_one_part_of_a_path() -> None:
    async with asking(whole(json.dumps(INSTANCE).encode())) as (service, requests):
        await service.instance("../snapshot/x?y=1")
    assert requests[0].target == "/instance/..%2Fsnapshot%2Fx%3Fy%3D1"


def test_a_key_is_sent_over_https_or_to_this_host() -> None:
    with pytest.raises(ValueError, match="https://"):
        MorphSettings(url="http://cloud.example")


READY, FROZEN, STOPPED = {labels.READY: "1"}, {labels.PAUSED: labels.FROZEN}, {labels.PAUSED: labels.STOPPED}


@pytest.mark.parametrize(
    ("said", "metadata", "meant"),
    [
        ("ready", READY, MachineStatus.READY),
        ("ready", {}, MachineStatus.ERROR),
        ("pending", READY, MachineStatus.ERROR),
        ("paused", READY | FROZEN, MachineStatus.READY),
        ("paused", READY | STOPPED, MachineStatus.STOPPED),
        ("saving", READY | FROZEN, MachineStatus.READY),
        ("saving", READY | STOPPED, MachineStatus.STOPPING),
        ("error", READY, MachineStatus.ERROR),
        ("hibernating", READY, MachineStatus.ERROR),
        ("", READY, MachineStatus.ERROR),
    ],
)
def test_each_status_of_the_service_has_a_meaning(said: str, metadata: dict[str, str], meant: MachineStatus) -> None:
    found = Instance(id="i", created=1, status=said, networking=Networking(), metadata=metadata)
    assert status_of(found).status is meant
    assert status_of(found, booting=True).status is MachineStatus.BOOTING


async def test_whether_it_works_is_asked_once() -> None:
    async with asking(whole(b"{}", status=500), patience=30) as (service, requests):
        with pytest.raises(ProviderFailed):
            await service.bases(once=True)
    assert len(requests) == 1
