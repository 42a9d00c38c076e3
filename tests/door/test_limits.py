"""Limits for hostile guests: an allow-list of requests, and a limit for everything that they send."""

# ruff: noqa: SIM117 - a server, a door and a guest on one line read badly
from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import httpx2
import pytest

from hiveyard.core.events import DoorRefused, ModelCalled
from hiveyard.door.reply import Reply
from hiveyard.door.settings import DoorSettings

from . import bodies
from .guests import ask, head, raw
from .house import PLACEHOLDER, MemoryJournal, door, guest, message, until
from .upstream import streamed, upstream, whole

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "target",
    [
        "/anthropic/../v1/models",
        "/anthropic/%2e%2e/openai/v1/models",
        "/anthropic/v1/../v1/models",
        "/anthropic//v1/models",
        "/anthropic/v1%2Fmodels",
        "/anthropic/v1/models/..",
        "/anthropic/v1/models/a/b",
        "/anthropic/v1/models/a%2f..%2fb",
        "/openai/v1/files",
        "/openai/v1/organization/api_keys",
        "/anthropic/v1/organizations/users",
        "/anthropic/v1/messages/batches",
        "/openai/v1/responses/resp_1",
        "http://evil.example/anthropic/v1/models",
        "//evil.example/v1/models",
        "/v1/models",
        "/anthropic/v1/models;x",
        "/ANTHROPIC/v1/models",
    ],
)
async def test_a_path_that_is_not_allowed_is_refused_and_recorded(tmp_path: Path, target: str) -> None:
    journal = MemoryJournal()
    async with upstream(whole(b"{}")) as up, door(up.url, journal, tmp_path) as opened:
        answer = await ask(opened, head(target))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert up.requests == []
    assert len(journal.of(DoorRefused)) == 1


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "GET"])
async def test_another_method_is_refused(tmp_path: Path, method: str) -> None:
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened:
        assert (await ask(opened, head("/anthropic/v1/messages", method=method))).startswith(b"HTTP/1.1 405 ")
    assert up.requests == []


@pytest.mark.parametrize("query", ["?a=" + "x" * 2000, "?a='b'", "?a=/../"])
async def test_a_query_with_unusual_characters_is_refused(tmp_path: Path, query: str) -> None:
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened:
        assert (await ask(opened, head(f"/openai/v1/models{query}"))).startswith(b"HTTP/1.1 400 ")
    assert up.requests == []


@pytest.mark.parametrize(
    "text",
    [
        b"\x00\xff\x16\x03\x01 garbage\r\n\r\n",
        b"GET /openai/v1/models HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST /openai/v1/responses HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /openai/v1/responses HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"GET /openai/v1/models HTTP/1.1\r\nhost: a\r\nx: " + b"a" * (1 << 20) + b"\r\n\r\n",
        b"GET /openai/v1/models HTTP/1.1\r\nhost: a\r\nx\x00y: z\r\n\r\n",
    ],
)
async def test_broken_http_ends_the_connection_and_nothing_else(tmp_path: Path, text: bytes) -> None:
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened:
        assert (await ask(opened, text))[:12] in (b"", b"HTTP/1.1 400")
        async with guest(opened) as client:
            assert (await client.get("/openai/v1/models")).status_code == 200
    assert len(up.requests) == 1


@pytest.mark.parametrize("status", [200, 401], ids=["answered", "refused"])
async def test_a_connection_is_closed_after_a_request_with_two_lengths(tmp_path: Path, status: int) -> None:
    key = PLACEHOLDER if status == 200 else "wrong"
    request = (
        f"POST /openai/v1/responses HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: 4\r\n"
        "transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    ).encode()
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened:
        answer = await ask(opened, request + head("/openai/v1/models"))
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer.lower()
    assert answer.count(b"HTTP/1.1 ") == 1  # the next request is not answered
    assert len(up.requests) == (1 if status == 200 else 0)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":1}{"b":2}', b'"' + b"a" * 1000]
)
async def test_a_body_that_is_no_json_object_is_refused(tmp_path: Path, body: bytes) -> None:
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        answer = await client.post("/anthropic/v1/messages", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"
    assert up.requests == []


@pytest.mark.parametrize(
    "body",
    [
        {"model": 5, "messages": "x", "tools": {}, "system": 7, "stream": "yes", "max_tokens": -1},
        {"messages": [None, 5, [], {"role": 5, "content": {"a": 1}}, {"role": "user", "content": [None, {"text": 5}]}]},
        {"stream_options": [], "stream": True, "messages": None},
        {"model": "\ud800", "input": [{"type": 5}, {"type": "message", "role": "user"}]},
    ],
)
async def test_invalid_fields_are_left_to_the_vendor(tmp_path: Path, body: object) -> None:
    async with upstream(whole(b"[5]")) as up, door(up.url, MemoryJournal(), tmp_path, budget_usd=1.0) as opened:
        async with guest(opened) as client:
            for path in ("/anthropic/v1/messages", "/openai/v1/chat/completions", "/openai/v1/responses"):
                answer = await client.post(path, content=json.dumps(body))
                assert answer.status_code == 200, answer.text


async def test_a_body_over_the_limit_is_refused_with_and_without_a_length(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"a" * (64 << 10)

    journal = MemoryJournal()
    async with upstream(whole(b"{}")) as up:
        settings = DoorSettings(anthropic_upstream=up.url, openai_upstream=up.url, body_mib=1)
        async with door(up.url, journal, tmp_path, settings=settings) as opened, guest(opened) as client:
            length = await client.post("/openai/v1/responses", content=b"a" * (2 << 20))
            chunked = await client.post("/openai/v1/responses", content=endless())
    assert (length.status_code, chunked.status_code) == (413, 413)
    assert up.requests == [] and len(journal.of(DoorRefused)) == 2


async def test_bodies_over_the_limit_of_one_door_are_refused(tmp_path: Path) -> None:
    waiting = anyio.Event()

    async def hold(request: object, stream: object) -> None:
        await waiting.wait()
        await whole(b"{}")(request, stream)  # type: ignore[arg-type]

    body = b'{"x":"' + b"a" * 900_000 + b'"}'
    async with upstream(hold) as up:
        settings = DoorSettings(anthropic_upstream=up.url, openai_upstream=up.url, body_mib=1, bodies_mib=2)
        async with door(up.url, MemoryJournal(), tmp_path, settings=settings) as opened, guest(opened) as client:
            async with anyio.create_task_group() as group:
                for _ in range(2):
                    group.start_soon(lambda: client.post("/openai/v1/responses", content=body))
                await until(lambda: len(up.requests) == 2)
                assert (await client.post("/openai/v1/responses", content=body)).status_code == 503
                waiting.set()
            assert (await client.post("/openai/v1/responses", content=body)).status_code == 200


async def test_requests_over_the_limit_wait_for_their_turn(tmp_path: Path) -> None:
    here, most = 0, 0

    async def count(request: object, stream: object) -> None:
        nonlocal here, most
        here += 1
        most = max(most, here)
        await anyio.sleep(0.01)
        here -= 1
        await whole(b"{}")(request, stream)  # type: ignore[arg-type]

    async with upstream(count) as up:
        settings = DoorSettings(anthropic_upstream=up.url, openai_upstream=up.url, requests=3)
        async with door(up.url, MemoryJournal(), tmp_path, settings=settings) as opened, guest(opened) as client:
            async with anyio.create_task_group() as group:
                for _ in range(12):
                    group.start_soon(lambda: client.get("/openai/v1/models"))
    assert most == 3 and len(up.requests) == 12


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"POST /openai/v1/responses HTTP/1.1\r\nhost: d\r\nx"])
async def test_a_head_that_never_arrives_closes_the_connection(tmp_path: Path, sent: bytes) -> None:
    settings = DoorSettings(head_seconds=0.2)
    async with door("", MemoryJournal(), tmp_path, settings=settings) as opened:
        assert await ask(opened, sent or b"G") == b""


async def test_a_body_that_never_arrives_times_out(tmp_path: Path) -> None:
    settings = DoorSettings(body_seconds=0.2)
    async with door("", MemoryJournal(), tmp_path, settings=settings) as opened:
        text = head("/openai/v1/responses", "content-length: 100", method="POST") + b"{"
        assert (await ask(opened, text)).startswith(b"HTTP/1.1 408 ")


async def test_connections_over_the_limit_are_closed(tmp_path: Path) -> None:
    async with upstream(whole(b"{}")) as up:
        settings = DoorSettings(anthropic_upstream=up.url, openai_upstream=up.url, connections=4)
        async with door(up.url, MemoryJournal(), tmp_path, settings=settings) as opened:
            streams = [await anyio.connect_unix(opened.path) for _ in range(4)]
            assert await ask(opened, b"") == b""
            for stream in streams:
                await stream.aclose()
            async with guest(opened) as client:
                assert (await client.get("/openai/v1/models")).status_code == 200


async def test_a_flood_of_refusals_is_recorded_at_a_limited_rate(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with door("", journal, tmp_path, settings=DoorSettings()) as opened, guest(opened) as client:
        for _ in range(200):
            assert (await client.get("/etc/passwd")).status_code == 404
    assert 30 <= len(journal.events) <= 40


@pytest.mark.parametrize("value", ["caf\xe9", "\xff\xfe", "\u00a0"])
async def test_a_header_of_any_bytes_is_left_to_the_vendor(tmp_path: Path, value: str) -> None:
    body = json.dumps(message()).encode()
    sent = head("/anthropic/v1/messages", f"user-agent: x{value}y", f"content-length: {len(body)}", method="POST")
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened:
        assert (await ask(opened, sent + body)).startswith(b"HTTP/1.1 200 ")
    assert up.requests[0].header("user-agent") == f"x{value}y"


class _Failing:
    """A source of answers that raises an unexpected error."""

    def ask(self, _asked: object, _passage: object) -> AbstractAsyncContextManager[Reply]:
        raise RuntimeError("unforeseen")


async def test_a_flood_of_failures_does_not_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with door("", MemoryJournal(), tmp_path, tape=_Failing(), settings=DoorSettings()) as opened:
        async with guest(opened) as client:
            for _ in range(200):
                assert (await client.post("/anthropic/v1/messages", json=message())).status_code == 500
    assert 1 <= len([one for one in caplog.records if one.name == "hiveyard.door"]) <= 40


async def test_a_refused_path_is_recorded_short_and_without_control_characters(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with door("", journal, tmp_path, settings=DoorSettings()) as opened:
        await ask(opened, head("/%1b[31m" + "a" * 5000))
    assert len(journal.of(DoorRefused)[0].what) <= 200


async def test_all_users_may_connect_to_the_socket_and_only_enter_its_directory(tmp_path: Path) -> None:
    directory = tmp_path / "doors" / "s1"
    async with door("", MemoryJournal(), directory, settings=DoorSettings()) as opened:
        assert opened.path == directory / "door.sock"
        assert stat.S_IMODE(opened.path.stat().st_mode) == 0o666
        assert stat.S_IMODE(directory.stat().st_mode) == 0o711
        assert os.listdir(directory) == ["door.sock"]
    assert os.listdir(directory) == []


async def test_the_socket_of_a_killed_daemon_is_replaced_at_once(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up:
        async with door(up.url, journal, tmp_path) as old:
            async with door(up.url, journal, tmp_path) as new:
                async with guest(new) as client:
                    assert (await client.post("/anthropic/v1/messages", json=message())).status_code == 200
                assert old.spent.requests == 0 and new.spent.requests == 1
            assert not new.path.exists()


async def test_an_old_door_that_closes_late_does_not_remove_the_socket_of_a_new_one(tmp_path: Path) -> None:
    opened, closing = anyio.Event(), anyio.Event()

    async def old_daemon() -> None:
        async with door("", MemoryJournal(), tmp_path, settings=DoorSettings()):
            opened.set()
            await closing.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(old_daemon)
        await opened.wait()
        async with door("", MemoryJournal(), tmp_path, settings=DoorSettings()) as new:
            closing.set()
            await anyio.wait_all_tasks_blocked()
            async with guest(new) as client:
                assert (await client.head("/")).status_code == 200


async def test_a_stale_file_at_the_sockets_path_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "door.sock").write_text("stale")
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        assert (await client.get("/openai/v1/models")).status_code == 200


async def test_a_door_works_at_a_very_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 40)
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), directory):
        fd = os.open(directory, os.O_RDONLY)
        transport = httpx2.AsyncHTTPTransport(uds=f"/proc/self/fd/{fd}/door.sock")
        async with httpx2.AsyncClient(transport=transport, headers={"x-api-key": PLACEHOLDER}) as client:
            assert (await client.get("http://door/openai/v1/models")).status_code == 200
        os.close(fd)


async def test_closing_a_door_cuts_open_requests_and_records_their_usage(tmp_path: Path) -> None:
    journal = MemoryJournal()

    async def wait(number: int) -> None:
        if number:
            await anyio.sleep_forever()

    async with upstream(streamed(bodies.ANTHROPIC_STREAM[:500], b"x", before=wait)) as up:
        async with anyio.create_task_group() as group:
            async with door(up.url, journal, tmp_path) as opened:
                begun = anyio.Event()

                async def read() -> None:
                    async with guest(opened) as client:
                        body = message(stream=True)
                        with pytest.raises(httpx2.TransportError):
                            async with client.stream("POST", "/anthropic/v1/messages", json=body) as response:
                                async for _ in response.aiter_raw():
                                    begun.set()

                group.start_soon(read)
                with anyio.fail_after(20):
                    await begun.wait()
    assert [called.complete for called in journal.of(ModelCalled)] == [False]


async def test_one_connection_takes_many_requests_in_sequence(tmp_path: Path) -> None:
    request = head("/openai/v1/models").replace(b"connection: close", b"connection: keep-alive")
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, raw(opened) as stream:
        with anyio.fail_after(20):
            for _ in range(50):
                await stream.send(request)
                answer = b""
                while not answer.endswith(b"{}"):
                    answer += await stream.receive()
    assert len(up.requests) == 50


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    request = head("/openai/v1/models").replace(b"connection: close", b"connection: keep-alive")
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, raw(opened) as stream:
        with anyio.fail_after(20):
            await stream.send(request * 10)
            answer = b""
            while answer.count(b"\r\n\r\n{}") < 10:
                answer += await stream.receive()
    assert len(up.requests) == 10


@pytest.mark.parametrize("value", ["true", " true ", '"yes"', "1", '"' + "x" * 100_000 + '"'])
async def test_a_request_for_an_answer_in_the_background_is_refused(value: str, tmp_path: Path) -> None:
    """The vendor would charge for it, and nobody would get its usage."""
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        asked = f'{{"model": "gpt-5.5", "input": "hi", "background":{value}}}'
        refused = await client.post("/openai/v1/responses", content=asked.encode())
        assert refused.status_code == 400
        assert "background" in refused.text
        assert not up.requests
        for fine in ("false", "null"):
            asked = f'{{"model": "gpt-5.5", "input": "hi", "background": {fine}}}'
            assert (await client.post("/openai/v1/responses", content=asked.encode())).status_code == 200
