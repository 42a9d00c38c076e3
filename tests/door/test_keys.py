"""The real key is used, and never shown."""

# ruff: noqa: SIM117 - a server, a door and a guest on one line read badly
from __future__ import annotations

import base64
import itertools
import json
import logging
from pathlib import Path
from urllib.parse import quote

import httpx2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiveyard.core.errors import BadSetting, CredentialsError, KeyMissing
from hiveyard.core.events import DoorRefused, ModelCalled, ModelFailed
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings, from_environment
from hiveyard.door.tape_recorder import Recorder
from hiveyard.kit.mask import Mask
from hiveyard.kit.secret import Secret

from . import bodies
from .house import KEY, PLACEHOLDER, MemoryJournal, door, guest, message
from .upstream import streamed, upstream, whole

pytestmark = pytest.mark.anyio


def forms_of_the_key() -> list[str]:
    """The key that must not appear anywhere."""
    middle = base64.b64encode(KEY.encode()).decode().rstrip("=")[:-2]
    shifted = base64.b64encode(b"x" + KEY.encode()).decode()[2:-4]
    return [KEY, quote(KEY, safe=""), KEY.encode().hex(), middle, shifted, json.dumps(KEY)[1:-1]]


def assert_no_key(where: str) -> None:
    for form in forms_of_the_key():
        assert form not in where


ECHO = json.dumps(
    {
        "type": "error",
        "error": {
            "message": f"invalid key {KEY} or {quote(KEY, safe='')}",
            "basic": base64.b64encode(f"user:{KEY}".encode()).decode(),
            "hex": KEY.encode().hex(),
        },
    }
).encode()


@pytest.mark.parametrize("status", [200, 401, 500])
async def test_a_vendor_that_echoes_the_key_is_masked_everywhere(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    journal, recorder = MemoryJournal(), Recorder(tmp_path / "tape.jsonl")
    answer = whole(ECHO, status=status, more=f"x-request-id: {KEY}\r\n")
    async with (
        upstream(answer) as up,
        door(up.url, journal, tmp_path, recorder=recorder) as opened,
        guest(opened) as client,
    ):
        got = await client.post("/anthropic/v1/messages", json=message())
    recorder.close()
    assert len(got.content) == len(ECHO) and got.status_code == status
    assert b"*****" in got.content
    assert_no_key(got.text + repr(got.headers))
    assert_no_key(msgspec.json.encode([body for _, _, body in journal.events]).decode())
    assert_no_key((tmp_path / "tape.jsonl").read_text())
    assert_no_key(caplog.text)


@pytest.mark.parametrize("size", [1, 2, 5, len(KEY) - 1, len(KEY) + 1])
async def test_a_key_that_is_cut_in_two_by_chunks_is_masked(tmp_path: Path, size: int) -> None:
    body = b"data: " + ECHO + b"\n\ndata: sk-real is a beginning only, and sk-real-Zq8TestSecret/ too\n\n"
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    async with (
        upstream(streamed(*pieces)) as up,
        door(up.url, MemoryJournal(), tmp_path) as opened,
        guest(opened) as client,
    ):
        got = await client.post("/anthropic/v1/messages", json=message(stream=True))
    assert_no_key(got.text)
    assert len(got.content) == len(body)
    assert got.text.endswith("data: sk-real is a beginning only, and sk-real-Zq8TestSecret/ too\n\n")


def test_a_mask_changes_only_secrets() -> None:
    masked = Mask([Secret(KEY)]).stream()
    data = b"sk-rea" * 1000 + KEY.encode()[:-1]
    assert b"".join([*(masked.feed(data[at : at + 3]) for at in range(0, len(data), 3)), masked.finish()]) == data


@settings(deadline=None)
@given(
    key=st.text("ab", min_size=8, max_size=12),
    data=st.text("abc", max_size=200),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_a_stream_cut_anywhere_shows_no_key_and_changes_nothing_else(key: str, data: str, sizes: list[int]) -> None:
    given_data, masked, at, out = data.encode(), Mask([Secret(key)]).stream(), 0, b""
    for size in itertools.cycle(sizes):
        if at >= len(given_data):
            break
        out += masked.feed(given_data[at : at + size])
        at += size
    out += masked.finish()
    assert key.encode() not in out
    assert len(out) == len(given_data)
    assert all(was == now or now == ord("*") for was, now in zip(given_data, out, strict=True))
    if key not in data:
        assert out == given_data


@pytest.mark.parametrize("shown", ["", "hv-placeholder-5f2e", PLACEHOLDER + "x", KEY, "ключ"])
async def test_a_wrong_placeholder_is_refused_and_recorded(tmp_path: Path, shown: str) -> None:
    journal = MemoryJournal()
    async with upstream(whole(b"{}")) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        for name in ("x-api-key", "authorization"):
            del client.headers[name]
        both = [(b"x-api-key", shown.encode()), (b"authorization", b"Bearer " + shown.encode())]
        headers = httpx2.Headers(both if shown else [])
        got = await client.post("/anthropic/v1/messages", json=message(), headers=headers)
        other = await client.post("/openai/v1/responses", json={}, headers=headers)
    assert got.status_code == other.status_code == 401
    assert got.json()["error"]["type"] == "authentication_error" and got.json()["type"] == "error"
    assert other.json()["error"]["code"] == "door.401"
    assert up.requests == []
    assert [event.what for event in journal.of(DoorRefused)] == [
        "POST /anthropic/v1/messages",
        "POST /openai/v1/responses",
    ]


@pytest.mark.parametrize("headers", [{"x-api-key": PLACEHOLDER}, {"authorization": f"bearer {PLACEHOLDER}"}])
async def test_either_header_may_have_the_placeholder(tmp_path: Path, headers: dict[str, str]) -> None:
    async with upstream(whole(b"{}")) as up, door(up.url, MemoryJournal(), tmp_path) as opened, guest(opened) as client:
        del client.headers["x-api-key"], client.headers["authorization"]
        assert (await client.post("/openai/v1/responses", json={}, headers=headers)).status_code == 200


async def test_a_missing_key_is_reported_to_the_agent_and_to_the_user(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with (
        upstream(whole(b"{}")) as up,
        door(up.url, journal, tmp_path, of=Keys({})) as opened,
        guest(opened) as client,
    ):
        got = await client.post("/anthropic/v1/messages", json=message())
        await client.post("/anthropic/v1/messages", json=message())
    assert got.status_code == 401 and got.headers["x-should-retry"] == "false"
    assert "ANTHROPIC_API_KEY" in got.json()["error"]["message"]
    [failed] = journal.of(ModelFailed)  # recorded once for all requests
    assert failed.failure.code == "credentials.key_missing" and failed.failure.hint
    assert up.requests == []


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "door.upstream_refused"),
        (401, "credentials.key_refused"),
        (403, "credentials.key_refused"),
        (429, "door.rate_limited"),
        (500, "door.upstream_failed"),
        (529, "door.upstream_failed"),
    ],
)
async def test_errors_of_a_vendor_pass_unchanged_and_are_recorded(tmp_path: Path, status: int, code: str) -> None:
    journal = MemoryJournal()
    body = b'{"type":"error","error":{"type":"x","message":"no, because"},"request_id":"req_9"}'
    answer = whole(body, status=status, more="retry-after: 17\r\nrequest-id: req_9\r\n")
    async with upstream(answer) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        got = await client.post("/anthropic/v1/messages", json=message())
    assert (got.status_code, got.content, got.headers["retry-after"]) == (status, body, "17")
    [failed] = journal.of(ModelFailed)
    assert (failed.status, failed.failure.code) == (status, code)
    assert "no, because" in failed.failure.message and "req_9" in failed.failure.message
    assert journal.of(ModelCalled) == []


async def test_an_unreachable_upstream_is_reported(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with upstream(whole(b"{}")) as up:
        gone = up.url
    async with door(gone, journal, tmp_path) as opened, guest(opened) as client:
        got = await client.post("/openai/v1/chat/completions", json={"model": "gpt-5"})
    assert got.status_code == 502 and "cannot be reached" in got.json()["error"]["message"]
    assert journal.of(ModelFailed)[0].failure.code == "door.upstream_failed"


async def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    journal = MemoryJournal()
    answer = whole(b"", status=307, more="location: https://evil.example/v1/messages\r\n")
    async with upstream(answer) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        got = await client.post("/anthropic/v1/messages", json=message())
    assert got.status_code == 502 and "location" not in got.headers and len(up.requests) == 1


def test_keys_come_from_a_private_file_and_change_with_it(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    keys = Keys({"OPENAI_API_KEY": "Zq8TestSecret-of-the-environment"}, file)
    with pytest.raises(KeyMissing):
        keys.find("anthropic")
    file.write_text('anthropic = "sk-ant-Zq8TestSecret-first"\nopenai = "Zq8TestSecret-of-the-file"\n')
    file.chmod(0o600)
    assert keys.find("anthropic").reveal() == "sk-ant-Zq8TestSecret-first"
    assert keys.find("openai").reveal() == "Zq8TestSecret-of-the-environment"
    file.write_text('anthropic = "sk-ant-Zq8TestSecret-second"\n')
    assert keys.find("anthropic").reveal() == "sk-ant-Zq8TestSecret-second"
    file.unlink()
    with pytest.raises(KeyMissing):
        keys.find("anthropic")


def test_a_key_file_that_others_can_read_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('anthropic = "sk-ant-Zq8TestSecret-first"\n')
    file.chmod(0o640)
    with pytest.raises(CredentialsError) as caught:
        Keys({}, file).find("anthropic")
    assert caught.value.hint == f"chmod 600 {file}" and "0640" in caught.value.message


@pytest.mark.parametrize(
    "content", ["anthropic = sk-Zq8TestSecret", "\xff", "gemini = 'sk-Zq8TestSecret'", "openai = 5"]
)
def test_a_key_file_with_something_else_in_it_is_an_error_that_shows_no_key(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_bytes(content.encode("latin-1"))
    file.chmod(0o600)
    with pytest.raises(CredentialsError) as caught:
        Keys({}, file).find("anthropic")
    assert "Zq8TestSecret" not in caught.value.message


@pytest.mark.parametrize("key", ["sk with space", "sk-line\nbreak-xxxx", "short", "sk-ключ-ключ"])
def test_an_invalid_key_is_an_error_that_does_not_show_it(key: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        Keys({"ANTHROPIC_API_KEY": key}).find("anthropic")
    assert key not in caught.value.message


def test_the_environment_names_the_upstreams() -> None:
    settings = from_environment(DoorSettings(), {"HIVEYARD_ANTHROPIC_UPSTREAM": "http://127.0.0.1:9/x/v1/"})
    assert settings.upstream("anthropic") == "http://127.0.0.1:9/x"
    assert settings.upstream("openai") == "https://api.openai.com"


@pytest.mark.parametrize(
    "address",
    [
        "",
        "ftp://x",
        "https://",
        "https://u:Zq8TestSecret@x",
        "https://x?k=1",
        "http://gateway.example",
        "https://[",
        "x:99999",
    ],
)
def test_an_upstream_that_cannot_be_used_is_a_setting_error(address: str) -> None:
    with pytest.raises(BadSetting) as caught:
        DoorSettings(anthropic_upstream=address)
    assert "Zq8TestSecret" not in caught.value.message


async def test_a_failure_of_the_journal_cuts_the_answer_and_shows_no_key(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(MemoryJournal):
        async def record(self, session: str, turn: int | None, event: object) -> None:
            raise RuntimeError(f"disk full while {KEY}")

    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up, door(up.url, Broken(), tmp_path) as opened:
        async with guest(opened) as client:
            with pytest.raises(Exception, match=r"peer closed|disconnected"):
                await client.post("/anthropic/v1/messages", json=message())
    assert "disk full" in caplog.text
    assert_no_key(caplog.text)
