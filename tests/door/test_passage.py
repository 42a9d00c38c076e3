"""A door relays requests and answers unchanged and at once, and counts them."""

# ruff: noqa: SIM117 - a server, a door and a guest on one line read badly
from __future__ import annotations

import gzip
from pathlib import Path

import anyio
import httpx2
import pytest

from hiveyard.core.events import DoorRefused, ModelCalled, ModelFailed, Notice

from . import bodies
from .house import KEY, PLACEHOLDER, HeldClock, MemoryJournal, door, guest, message, until
from .upstream import Request, streamed, upstream, whole

pytestmark = pytest.mark.anyio


async def test_an_answer_that_is_not_streamed_passes_unchanged_and_is_counted(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up, door(up.url, journal, tmp_path) as opened:
        async with guest(opened) as client:
            answer = await client.post("/anthropic/v1/messages?beta=true", json=message())
    assert (answer.status_code, answer.content) == (200, bodies.ANTHROPIC_WHOLE)
    [(session, turn, called)] = journal.events
    assert (session, turn) == ("s1", 1)
    assert isinstance(called, ModelCalled)
    assert called.protocol == "anthropic" and called.model == "claude-sonnet-4-5-20250929" and called.complete
    assert (called.usage.input_tokens, called.usage.output_tokens) == (12, 6)
    assert (called.usage.cache_read_tokens, called.usage.cache_write_tokens) == (18111, 2048)
    # Input, cache read, cache written for 5 minutes, for an hour, output: each has its price per million tokens.
    assert called.usage.cost_usd == pytest.approx((12 * 3 + 18111 * 0.3 + 1024 * 3.75 + 1024 * 6 + 6 * 15) / 1e6)


async def test_the_upstream_gets_the_real_key_and_only_allowed_headers(tmp_path: Path) -> None:
    hostile = {
        "anthropic-version": "2023-06-01",
        "cookie": "a=b",
        "x-forwarded-for": "10.0.0.1",
        "openai-organization": "org-other",
        "host": "evil.example",
        "connection": "x-hop",
        "x-hop": "1",
        "proxy-authorization": "Basic eA==",
        "accept-encoding": "gzip",
        "x-openai-internal-codex-responses-lite": "true",
    }
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        await client.post("/anthropic/v1/messages?beta=true", json=message(), headers=hostile)
        await client.post("/openai/v1/responses", json={"model": "gpt-5", "input": "x"}, headers=hostile)
    first, second = up.requests
    assert first.target == "/v1/messages?beta=true"
    assert first.header("x-api-key") == KEY and first.header("authorization") is None
    assert second.header("authorization") == f"Bearer {KEY}" and second.header("x-api-key") is None
    assert first.header("anthropic-version") == "2023-06-01"
    assert second.header("x-openai-internal-codex-responses-lite") == "true", "codex's body has another form with it"
    for request in up.requests:
        assert request.header("host") == up.url.removeprefix("http://")
        assert request.header("accept-encoding") == "identity"
        assert not {"cookie", "x-forwarded-for", "openai-organization", "x-hop", "proxy-authorization"} & {
            name for name, _ in request.headers
        }
        assert PLACEHOLDER not in repr(request)


async def test_account_headers_and_cookies_of_a_vendor_do_not_reach_the_guest(tmp_path: Path) -> None:
    more = "set-cookie: a=b\r\nanthropic-organization-id: 1234\r\nrequest-id: req_1\r\nserver: cf\r\n"
    more += "anthropic-ratelimit-requests-remaining: 7\r\n"
    async with upstream(whole(b"{}", more=more)) as up, door(up.url, MemoryJournal(), tmp_path) as opened:
        async with guest(opened) as client:
            answer = await client.post("/anthropic/v1/messages", json=message())
    assert answer.headers["request-id"] == "req_1"
    assert answer.headers["anthropic-ratelimit-requests-remaining"] == "7"
    assert not {"set-cookie", "anthropic-organization-id", "server"} & set(answer.headers)


async def test_a_chunk_arrives_before_the_upstream_has_sent_the_next(tmp_path: Path) -> None:
    seen = [anyio.Event() for _ in range(3)]

    async def wait_for_the_guest(number: int) -> None:
        if number:
            await seen[number - 1].wait()

    chunks = [b'data: {"n": 0}\n\n', b'data: {"n":', b" 2}\n\n"]
    answer = streamed(*chunks, before=wait_for_the_guest)
    received: list[bytes] = []
    async with upstream(answer) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        with anyio.fail_after(20):
            async with client.stream("POST", "/anthropic/v1/messages", json=message(stream=True)) as response:
                async for chunk in response.aiter_raw():
                    seen[len(received)].set()
                    received.append(chunk)
    assert received == chunks


@pytest.mark.parametrize(
    ("path", "request_body", "answer", "counts"),
    [
        ("/anthropic/v1/messages", message(stream=True), bodies.ANTHROPIC_STREAM, (472, 89, 9000, 100)),
        (
            "/openai/v1/responses",
            {"model": "gpt-5", "input": "x", "stream": True},
            bodies.RESPONSES_STREAM,
            (200, 52, 128, 0),
        ),
        (
            "/openai/v1/chat/completions",
            {"model": "gpt-5", "messages": [], "stream": True, "stream_options": {"include_usage": True}},
            bodies.CHAT_STREAM,
            (195, 10, 1024, 0),
        ),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 1000, 100_000])
async def test_streams_of_each_protocol_pass_unchanged_and_are_counted(
    tmp_path: Path, path: str, request_body: object, answer: bytes, counts: tuple[int, ...], size: int
) -> None:
    journal = MemoryJournal()
    pieces = [answer[at : at + size] for at in range(0, len(answer), size)]
    async with upstream(streamed(*pieces)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        got = await client.post(path, json=request_body)
    assert got.content == answer
    [called] = journal.of(ModelCalled)
    usage = called.usage
    assert called.complete
    assert counts == (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.cache_write_tokens)
    assert usage.cost_usd is not None and usage.cost_usd > 0


@pytest.mark.parametrize("size", [1, 9, 100_000])
async def test_a_chat_is_counted_even_if_the_guest_did_not_request_the_usage(tmp_path: Path, size: int) -> None:
    journal = MemoryJournal()
    pieces = [bodies.CHAT_STREAM[at : at + size] for at in range(0, len(bodies.CHAT_STREAM), size)]
    async with upstream(streamed(*pieces)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        got = await client.post("/openai/v1/chat/completions", json={"model": "gpt-5", "messages": [], "stream": True})
    assert b'"include_usage":true' in up.requests[0].body
    assert got.content == bodies.CHAT_CHUNK + bodies.CHAT_LAST + bodies.CHAT_DONE
    assert journal.of(ModelCalled)[0].usage.output_tokens == 10


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/openai/v1/chat/completions", {"model": "gpt-5", "messages": []}, bodies.CHAT_WHOLE),
        ("/openai/v1/responses", {"model": "gpt-5", "input": "x"}, bodies.RESPONSES_WHOLE),
    ],
)
async def test_answers_of_openai_that_are_not_streamed_are_counted(
    tmp_path: Path, path: str, body: object, answer: bytes
) -> None:
    journal = MemoryJournal()
    async with upstream(whole(answer)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        assert (await client.post(path, json=body)).content == answer
    assert journal.of(ModelCalled)[0].usage.cache_read_tokens in (1024, 128)


async def test_usage_is_in_the_journal_before_the_stream_ends_for_the_guest(tmp_path: Path) -> None:
    go_on = anyio.Event()
    reached = anyio.Event()

    class Slow(MemoryJournal):
        async def record(self, session: str, turn: int | None, event: object) -> None:
            reached.set()
            await go_on.wait()
            await super().record(session, turn, event)  # type: ignore[arg-type]

    journal = Slow()
    received = bytearray()
    begin, end = bodies.ANTHROPIC_STREAM[:-60], bodies.ANTHROPIC_STREAM[-60:]
    async with upstream(streamed(begin, end)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        async with client.stream("POST", "/anthropic/v1/messages", json=message(stream=True)) as response:
            async for chunk in response.aiter_raw():
                received += chunk
                if b"message_stop" in received:
                    assert journal.of(ModelCalled)
                elif bytes(received) == begin:
                    with anyio.fail_after(20):
                        await reached.wait()
                    assert not journal.of(ModelCalled)
                    go_on.set()
    assert bytes(received) == bodies.ANTHROPIC_STREAM


async def test_a_stream_that_the_vendor_cuts_is_cut_for_the_guest_and_counted(tmp_path: Path) -> None:
    journal = MemoryJournal()
    part = bodies.ANTHROPIC_STREAM[: bodies.ANTHROPIC_STREAM.index(b"event: message_delta")]
    async with upstream(streamed(part, cut=True)) as up, door(up.url, journal, tmp_path, clock=HeldClock()) as opened:
        async with guest(opened) as client:
            received = b""
            with pytest.raises(httpx2.RemoteProtocolError):
                async with client.stream("POST", "/anthropic/v1/messages", json=message(stream=True)) as response:
                    async for chunk in response.aiter_raw():
                        received += chunk
    assert received == part
    [called] = journal.of(ModelCalled)
    assert not called.complete and called.usage.input_tokens == 472 and called.usage.cache_read_tokens == 9000
    assert called.usage.output_tokens == 8  # an estimate for 29 relayed characters, so that a cut answer is not free
    assert journal.of(ModelFailed)[0].failure.code == "door.upstream_failed"


async def test_an_error_inside_a_stream_is_a_failure(tmp_path: Path) -> None:
    journal = MemoryJournal()
    error = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'
    async with upstream(streamed(error)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        got = await client.post("/anthropic/v1/messages", json=message(stream=True))
    assert got.content == error
    assert "Overloaded" in journal.of(ModelFailed)[0].failure.message
    assert not journal.of(ModelCalled)[0].complete


async def test_a_guest_that_disconnects_in_the_middle_ends_the_upstream_request_and_pays(tmp_path: Path) -> None:
    journal = MemoryJournal()

    async def wait(number: int) -> None:
        if number == 1:
            await anyio.sleep_forever()

    answer = streamed(bodies.ANTHROPIC_STREAM[:500], b"x", before=wait)
    async with upstream(answer) as up, door(up.url, journal, tmp_path) as opened:
        async with guest(opened) as client:
            async with client.stream("POST", "/anthropic/v1/messages", json=message(stream=True)) as response:
                assert await anext(response.aiter_raw())
        await until(lambda: not opened.busy)
    [called] = journal.of(ModelCalled)
    assert not called.complete and called.usage.input_tokens == 472 and called.status == 200


async def test_a_compressed_answer_is_decoded_and_counted(tmp_path: Path) -> None:
    journal = MemoryJournal()
    answer = whole(gzip.compress(bodies.ANTHROPIC_WHOLE), more="content-encoding: gzip\r\n")
    async with upstream(answer) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        got = await client.post("/anthropic/v1/messages", json=message())
    assert got.content == bodies.ANTHROPIC_WHOLE and "content-encoding" not in got.headers
    assert journal.of(ModelCalled)[0].usage.output_tokens == 6


async def test_a_model_without_a_known_price_is_reported_once(tmp_path: Path) -> None:
    journal = MemoryJournal()
    body = bodies.ANTHROPIC_WHOLE.replace(b"claude-sonnet-4-5-20250929", b"house-model")
    async with upstream(whole(body)) as up, door(up.url, journal, tmp_path, budget_usd=1.0) as opened:
        async with guest(opened) as client:
            for _ in range(3):
                await client.post("/anthropic/v1/messages", json=message(model="house-model"))
    assert [called.usage.cost_usd for called in journal.of(ModelCalled)] == [None] * 3
    [notice] = journal.of(Notice)
    assert "house-model" in notice.message and notice.code == "door.no_price"


async def test_twenty_requests_at_once_get_each_their_own_answer(tmp_path: Path) -> None:
    journal = MemoryJournal()

    async def echo(request: Request, stream: object) -> None:
        await whole(b'{"echo":%d}' % len(request.body))(request, stream)  # type: ignore[arg-type]

    answers: dict[int, bytes] = {}
    async with upstream(echo) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:

        async def ask(size: int) -> None:
            body = b'{"x":"' + b"a" * size + b'"}'
            answers[len(body)] = (await client.post("/openai/v1/responses", content=body)).content

        async with anyio.create_task_group() as group:
            for size in range(20):
                group.start_soon(ask, size * 1000)
    assert answers == {size: b'{"echo":%d}' % size for size in answers} and len(answers) == 20
    assert len(journal.of(ModelCalled)) == 20


async def test_lists_of_models_and_token_counts_pass_and_are_not_recorded_as_calls(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with (
        upstream(whole(b'{"data":[]}')) as up,
        door(up.url, journal, tmp_path) as opened,
        guest(opened) as client,
    ):
        for path in ("/anthropic/v1/models", "/openai/v1/models", "/openai/v1/models/gpt-5.5"):
            assert (await client.get(path)).status_code == 200
        assert (await client.post("/anthropic/v1/messages/count_tokens", json=message())).status_code == 200
    assert [request.target for request in up.requests][2] == "/v1/models/gpt-5.5"
    assert journal.events == []


async def test_a_body_of_many_mebibytes_passes_both_ways(tmp_path: Path) -> None:
    async def echo(request: Request, stream: object) -> None:
        await whole(request.body)(request, stream)  # type: ignore[arg-type]

    body = b'{"x":"' + b"a" * (20 << 20) + b'"}'
    async with upstream(echo) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        assert (await client.post("/openai/v1/responses", content=body)).content == body


async def test_the_turn_may_change_while_the_door_is_open(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up, door(up.url, journal, tmp_path) as opened:
        async with guest(opened) as client:
            await client.post("/anthropic/v1/messages", json=message())
            opened.turn = 2
            await client.post("/anthropic/v1/messages", json=message())
    assert [turn for _, turn, _ in journal.events] == [1, 2]
    assert opened.spent.requests == 2


async def test_a_probe_needs_no_key_and_leaves_no_trace(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with (
        upstream(whole(b"{}")) as up,
        door(up.url, journal, tmp_path) as opened,
        guest(opened, key="x") as client,
    ):
        for path in ("/", "/anthropic", "/openai/"):
            assert (await client.head(path)).status_code == 200
    assert journal.of(DoorRefused) == [] and up.requests == []


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        (b'{"messages":["half \\ud83d"], "x":1.0}', None),
        (b' {"a":12345678901234567890123,"b":1e400}\n', None),
        (b'{"stream":true,"q":"\\udc00"} ', b'{"stream":true,"q":"\\udc00","stream_options":{"include_usage":true}}'),
        (
            b'{"stream_options":{"x":[1]},"stream":true}',
            b'{"stream_options":{"x":[1],"include_usage":true},"stream":true}',
        ),
        (b'{"stream_options":{"include_usage":true},"stream":true, "z":0}', None),
    ],
)
async def test_a_body_passes_unchanged_except_for_the_requested_count(
    tmp_path: Path, sent: bytes, passed: bytes | None
) -> None:
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        assert (await client.post("/openai/v1/chat/completions", content=sent)).status_code == 200
    assert up.requests[0].body == (passed or sent)
