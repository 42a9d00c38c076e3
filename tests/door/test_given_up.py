"""Requests without a complete answer: only the vendor's work is charged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from hiveyard.core.events import ModelCalled, ModelFailed
from hiveyard.door.door import Door
from hiveyard.door.settings import DoorSettings
from hiveyard.door.sse import LONGEST

from . import bodies
from .house import HeldClock, MemoryJournal, door, guest, message, until
from .upstream import Request, streamed, upstream, whole

pytestmark = pytest.mark.anyio


async def hang_up(opened: Door, asked: anyio.Event, **more: Any) -> None:
    """Send a request and disconnect when `asked` is set; return when the door has finished the request."""
    async with guest(opened) as client, anyio.create_task_group() as group:

        async def ask() -> None:
            await client.post("/anthropic/v1/messages", json=message("a" * 400, **more))

        group.start_soon(ask)
        with anyio.fail_after(20):
            await asked.wait()
        assert opened.busy == 1
        group.cancel_scope.cancel()
    await until(lambda: not opened.busy)


async def test_a_guest_that_disconnects_before_the_answer_pays_for_its_request(tmp_path: Path) -> None:
    journal, arrived = MemoryJournal(), anyio.Event()

    async def silent(_request: Request, _stream: object) -> None:
        arrived.set()
        await anyio.sleep_forever()

    async with upstream(silent) as up, door(up.url, journal, tmp_path) as opened:
        await hang_up(opened, arrived)
    [called] = journal.of(ModelCalled)
    assert not called.complete and called.usage.input_tokens >= 100 and called.status == 499


@pytest.mark.parametrize(
    ("asked_for", "counted"), [({}, 100), ({"max_tokens": 32_000}, 5000), ({"max_tokens": None}, 5000)]
)
async def test_an_unseen_answer_is_charged_by_its_time(tmp_path: Path, asked_for: dict[str, Any], counted: int) -> None:
    journal, arrived, clock = MemoryJournal(), anyio.Event(), HeldClock()

    async def silent(_request: Request, _stream: object) -> None:
        clock.at += 100.0
        arrived.set()
        await anyio.sleep_forever()

    async with upstream(silent) as up, door(up.url, journal, tmp_path, clock=clock) as opened:
        await hang_up(opened, arrived, **asked_for)
    [called] = journal.of(ModelCalled)
    assert called.usage.output_tokens == counted and not called.complete


@pytest.mark.parametrize("told_too", [False, True])
async def test_a_cut_stream_is_charged_by_its_time_unless_the_vendor_sent_a_count(
    tmp_path: Path, told_too: bool
) -> None:
    journal, clock = MemoryJournal(), HeldClock()
    end = bodies.ANTHROPIC_STREAM.index(b"event: message_stop" if told_too else b"event: message_delta")

    async def later(_number: int) -> None:
        clock.at += 1.0

    answer = streamed(bodies.ANTHROPIC_STREAM[:end], cut=True, before=later)
    async with upstream(answer) as up, door(up.url, journal, tmp_path, clock=clock) as opened, guest(opened) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/anthropic/v1/messages", json=message(stream=True))
    assert journal.of(ModelCalled)[0].usage.output_tokens == (89 if told_too else 50)


async def test_a_request_without_an_answer_is_charged_and_recorded_as_a_failure(tmp_path: Path) -> None:
    journal, clock = MemoryJournal(), HeldClock()

    async def silent(_request: Request, _stream: object) -> None:
        clock.at += 10.0
        await anyio.sleep_forever()

    async with upstream(silent) as up:
        settings = DoorSettings(anthropic_upstream=up.url, silence_seconds=0.2)
        async with door("", journal, tmp_path, settings=settings, clock=clock) as opened, guest(opened) as client:
            answer = await client.post("/anthropic/v1/messages", json=message("a" * 400, max_tokens=4000))
    assert answer.status_code >= 500
    [called] = journal.of(ModelCalled)
    assert not called.complete and called.status == 502 and called.usage.output_tokens == 500
    assert called.usage.input_tokens >= 100 and (called.usage.cost_usd or 0) > 0.0075
    assert journal.of(ModelFailed)[0].failure.code == "door.upstream_failed"


async def test_an_answer_that_is_too_long_to_be_read_is_charged_by_its_time(tmp_path: Path) -> None:
    journal, clock = MemoryJournal(), HeldClock()
    body = b'{"content":[{"text":"' + b"a" * (LONGEST + (1 << 20)) + b'"}],' + bodies.ANTHROPIC_WHOLE[1:]

    async def slow(request: Request, stream: SocketStream) -> None:
        clock.at += 10.0
        await whole(body)(request, stream)

    async with upstream(slow) as up, door(up.url, journal, tmp_path, clock=clock) as opened, guest(opened) as client:
        got = await client.post("/anthropic/v1/messages", json=message("a" * 400, max_tokens=4000))
    assert got.content == body
    [called] = journal.of(ModelCalled)
    assert not called.complete and called.usage.output_tokens == 500 and called.usage.input_tokens >= 100


async def test_a_redirect_and_an_unreachable_vendor_cost_nothing(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with upstream(whole(b"", status=307, more="location: http://127.0.0.1/\r\n")) as up:
        settings = DoorSettings(anthropic_upstream=up.url, openai_upstream="http://127.0.0.1:1")
        async with door("", journal, tmp_path, settings=settings) as opened, guest(opened) as client:
            for path in ("/anthropic/v1/messages", "/openai/v1/responses"):
                assert (await client.post(path, json=message())).status_code >= 500
    assert journal.of(ModelCalled) == [] and len(journal.of(ModelFailed)) == 2


async def test_a_request_that_was_not_sent_costs_nothing(tmp_path: Path) -> None:
    """The guest disconnects before there is a connection to the vendor."""
    journal, asked = MemoryJournal(), anyio.Event()

    async def proxy(_request: Request, _stream: object) -> None:
        asked.set()
        await anyio.sleep_forever()

    async with upstream(proxy) as slow:
        settings = DoorSettings(anthropic_upstream="https://vendor.invalid", proxy=slow.url)
        async with door("", journal, tmp_path, settings=settings, budget_usd=1.0) as opened:
            await hang_up(opened, asked)
            assert opened.spent.requests == 0
    assert [request.method for request in slow.requests] == ["CONNECT"] and journal.events == []
