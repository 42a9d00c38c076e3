"""The work for a body is limited, whatever its size and number of parts."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import anyio
import pytest
from anyio.abc import SocketStream

from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.door.conversation import Place
from hiveyard.door.model_request import ModelRequest, parse_request
from hiveyard.door.normalize import empty, normalized
from hiveyard.door.reply import Progress
from hiveyard.door.routes import Route
from hiveyard.door.settings import DoorSettings
from hiveyard.door.tape import Tape
from hiveyard.door.tape_recorder import Recorder
from hiveyard.kit.clock import SystemClock
from hiveyard.kit.secret import Secret

from .house import PLACEHOLDER, MemoryJournal, doors, guest, message, until
from .upstream import Request, upstream, whole

CHAT = Route("openai", "POST", "/v1/chat/completions", "openai-chat")
MESSAGES = Route("anthropic", "POST", "/v1/messages", "anthropic")


def crowd(parts: int) -> bytes:
    """Return a conversation of that many empty messages."""
    return b'{"model":"m","messages":[' + b",".join([b'{"role":"user"}'] * parts) + b"]}"


@pytest.mark.parametrize(
    ("sent", "passed"),
    [
        (
            b'{"x": 1.0, "stream_options" : {"include_usage": false} ,"stream":true}',
            b'{"x": 1.0, "stream_options" : {"include_usage":true} ,"stream":true}',
        ),
        (
            b'{"tools":[{"stream_options":null}],"stream":true,"stream_options":null,"z":["stream_options"]}',
            b'{"tools":[{"stream_options":null}],"stream":true,"stream_options":{"include_usage":true},'
            b'"z":["stream_options"]}',
        ),
        (
            b'{"stream":true,"stream_options":{},"q":"\\ud83d\\\\\\"stream_options\\":{}"}',
            b'{"stream":true,"stream_options":{"include_usage":true},"q":"\\ud83d\\\\\\"stream_options\\":{}"}',
        ),
        (
            b'{"stream":true,"stream_options":{"a":1},"stream_options":{"b":1}}',
            b'{"stream":true,"stream_options":{"a":1},"stream_options":{"b":1,"include_usage":true}}',
        ),
    ],
)
def test_the_doors_options_replace_those_of_a_guest_and_the_rest_is_unchanged(sent: bytes, passed: bytes) -> None:
    assert parse_request(CHAT, body=sent).body == passed
    assert parse_request(CHAT, body=sent).counted


@pytest.mark.parametrize("name", [b'"stream\\u005foptions"', b'"\\u0073tream_options"'])
def test_options_that_are_hidden_from_the_door_are_refused(name: bytes) -> None:
    hidden = b'{"stream":true,"x":{"stream_options":{}},' + name + b":{}}"
    with pytest.raises(BadInput, match="stream_options"):
        parse_request(CHAT, body=hidden)


def test_a_body_that_is_too_large_to_be_parsed_passes_unchanged() -> None:
    begin, data = b'{"stream":true,"stream_options":{"include_usage":false}', b',"x":"' + b"a" * (33 << 20) + b'"}'
    passed = parse_request(CHAT, body=begin + data).body
    assert passed == begin.replace(b"false", b"true") + data


def test_a_body_of_too_many_parts_is_not_parsed() -> None:
    few, many = (parse_request(MESSAGES, body=crowd(parts)) for parts in (1000, 300_000))
    assert few.tokens < 2000
    assert many.tokens == 200_000
    assert parse_request(MESSAGES, body=crowd(100_000)).tokens == len(crowd(100_000)) // 4
    nested = b'{"messages":[' + b",".join([b"[" * 400 + b"]" * 400] * 1000) + b"]}"
    assert parse_request(MESSAGES, body=nested).tokens == len(nested) // 4
    last = crowd(300_000)[:-2] + b',{"role":"user","content":"hello"}]}'
    assert parse_request(MESSAGES, body=last).place == Place(0, 0, "", "")


def test_an_empty_text_is_recognized_without_normalizing_it() -> None:
    reminder = "<system-reminder>x</system-reminder>"
    for text in (
        "",
        " \n",
        reminder,
        f" {reminder}\n<env></env>",
        "a",
        f"{reminder}a",
        "<env>",
        "<b>",
        " " * (1 << 20),
    ):
        assert empty(text) is (normalized(text) == ""), text[:40]


@pytest.mark.anyio
async def test_conversations_are_parsed_outside_the_event_loop(tmp_path: Path) -> None:
    """For a tape, parsing a conversation may take a second."""
    threads = []

    def mask(text: str) -> str:
        threads.append(threading.get_ident())
        return text

    recorder = Recorder(tmp_path / "t.jsonl")
    ask = await recorder.ask_of(parse_request(MESSAGES, body=json.dumps(message()).encode()), mask)
    recorder.close()
    assert ask.text == "hello" and threads and threading.get_ident() not in threads


@pytest.mark.anyio
async def test_a_tape_parses_conversations_outside_the_event_loop() -> None:
    asked = _Noticing(route=MESSAGES, body=json.dumps(message()).encode())
    with pytest.raises(HiveyardError):
        async with Tape([]).ask(asked, Progress(SystemClock())):
            pass
    assert asked.threads and threading.get_ident() not in asked.threads


@pytest.mark.anyio
async def test_bodies_over_the_limit_of_all_doors_are_refused(tmp_path: Path) -> None:
    waiting = anyio.Event()

    async def hold(request: Request, stream: SocketStream) -> None:
        await waiting.wait()
        await whole(b"{}")(request, stream)

    body = b'{"x":"' + b"a" * 700_000 + b'"}'
    async with upstream(hold) as up:
        limits = DoorSettings(openai_upstream=up.url, body_mib=1, bodies_mib=2, bodies_total_mib=1)
        async with doors(up.url, MemoryJournal(), settings=limits) as both:
            one = both.open(session="s1", directory=tmp_path / "1", placeholder=Secret(PLACEHOLDER))
            other = both.open(session="s2", directory=tmp_path / "2", placeholder=Secret(PLACEHOLDER))
            async with one as first, other as second, guest(first) as holding, guest(second) as client:
                async with anyio.create_task_group() as group:
                    group.start_soon(lambda: holding.post("/openai/v1/responses", content=body))
                    await until(lambda: len(up.requests) == 1)
                    refused = await client.post("/openai/v1/responses", content=body)
                    assert refused.status_code == 503 and refused.headers["x-should-retry"] == "true"
                    assert (await client.post("/openai/v1/responses", content=b"[]")).status_code == 400
                    waiting.set()
                assert (await client.post("/openai/v1/responses", content=body)).status_code == 200


class _Noticing(ModelRequest):
    threads: list[int] = []  # noqa: RUF012

    @property
    def place(self) -> Place:
        self.threads.append(threading.get_ident())
        return super().place
