"""Relayed data is read without trusting it: any bytes, cut anywhere, with limited memory."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiveyard.core.usage import Usage
from hiveyard.door import conversation
from hiveyard.door.meter import Meter, only_usage
from hiveyard.door.model_request import ModelRequest, parse_request
from hiveyard.door.normalize import normalized
from hiveyard.door.prices import Prices
from hiveyard.door.quota import EventQuota
from hiveyard.door.routes import Protocol, Route
from hiveyard.door.sse import EventBlocks, EventData

from . import bodies

STREAMS: dict[Protocol, bytes] = {
    "anthropic": bodies.ANTHROPIC_STREAM,
    "openai-chat": bodies.CHAT_STREAM,
    "openai-responses": bodies.RESPONSES_STREAM,
}
LINES = st.lists(
    st.sampled_from([b"data: {}", b"data:", b"data: [DONE", b": x", b"event: y", b"", b"\r", b"\xff\x00", b"data: {"])
)
CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=10)


def asked(protocol: Protocol, **body: object) -> ModelRequest:
    return parse_request(Route("openai", "POST", "/x", protocol), body=json.dumps(body).encode())


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    out: list[bytes] = []
    at = 0
    while at < len(data):
        size = cuts[len(out) % len(cuts)]
        out.append(data[at : at + size])
        at += size
    return out


@pytest.mark.parametrize(
    ("body", "offered"),
    [
        ({"tools": [{"name": "shell"}]}, True),
        ({"input": [{"type": "additional_tools", "role": "developer", "tools": [{"name": "exec"}]}]}, True),
        ({"tools": [], "input": [{"type": "message", "content": [{"type": "additional_tools"}]}]}, False),
        ({"input": '[{"type": "additional_tools"}]'}, False),
        ({}, False),
    ],
)
def test_tools_are_found_where_agents_offer_them(body: dict[str, object], offered: bool) -> None:
    assert asked("openai-responses", **body).tools is offered


def test_tools_in_the_conversation_are_not_part_of_it() -> None:
    said = {"type": "message", "role": "user", "content": "fix it"}
    tools = {"type": "additional_tools", "role": "developer", "tools": []}
    assert asked("openai-responses", input=[tools, said]).place == asked("openai-responses", input=[said]).place
    assert conversation.steps("openai-responses", {"input": [tools]}) == []


PDF = {"type": "base64", "media_type": "application/pdf", "data": "a" * 400_000}
IMAGE = {"type": "base64", "media_type": "image/png", "data": "a" * 400_000}


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "text", "media_type": "text/plain", "data": "a" * 400_000}, 100_000),
        ({"media_type": "text/markdown", "data": "a" * 400_000}, 100_000),
        ({"type": "tool_use", "input": {"data": "a" * 400_000}}, 100_000),
        ({"type": "document", "source": PDF}, 30_000),
        ({"type": "input_file", "file_data": "a" * 400_000}, 30_000),
        ({"type": "image", "source": IMAGE}, 1500),
        ({"type": "input_image", "image_url": "data:image/png;base64," + "a" * 400_000}, 1500),
        ({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, 1500),
        ({"type": "input_audio", "input_audio": {"data": "a" * 400_000, "format": "mp3"}}, 0),
        ({"type": "thinking", "signature": "a" * 400_000}, 0),
        ({"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}}, 200_000),
        ({"type": "input_file", "file_id": "file_1"}, 200_000),
        ({"type": "input_file", "file_id": None}, 0),
    ],
)
def test_the_contents_of_a_request_are_counted_by_type(part: dict[str, object], tokens: int) -> None:
    found = asked("anthropic", messages=[{"role": "user", "content": [part]}]).tokens
    assert tokens <= found <= tokens + 30


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({"previous_response_id": "resp_1"}, 200_000),
        ({"conversation": {"id": "conv_1"}}, 200_000),
        ({"previous_response_id": None, "conversation": None}, 2),
    ],
)
def test_a_conversation_stored_at_the_vendor_counts_as_long(more: dict[str, object], tokens: int) -> None:
    assert asked("openai-responses", input="hello", **more).tokens == tokens


@settings(deadline=None)
@given(lines=LINES, cuts=CUTS)
def test_blocks_are_the_original_bytes_wherever_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"\n".join(lines)
    blocks = EventBlocks()
    out = [block for piece in pieces(data, cuts) for block in blocks.feed(piece)]
    assert b"".join([*out, blocks.finish()]) == data
    assert all(block.endswith((b"\n\n", b"\n\r\n")) for block in out)


@settings(deadline=None)
@given(lines=LINES, cuts=CUTS)
def test_events_are_the_same_wherever_they_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"\n".join(lines)
    whole, cut = EventData(), EventData()
    assert whole.feed(data) + whole.finish() == [e for p in pieces(data, cuts) for e in cut.feed(p)] + cut.finish()


@pytest.mark.parametrize("protocol", STREAMS)
@settings(deadline=None, max_examples=50)
@given(garbage=LINES, cuts=CUTS)
def test_garbage_between_events_does_not_change_the_count(
    protocol: Protocol, garbage: list[bytes], cuts: list[int]
) -> None:
    clean, dirty = (Meter(asked(protocol), streamed=True) for _ in range(2))
    clean.feed(STREAMS[protocol])
    noise = b"\n".join(garbage) + b"\n\n"
    for piece in pieces(STREAMS[protocol].replace(b"\n\n", b"\n\n" + noise), cuts):
        dirty.feed(piece)
    assert clean.finished and dirty.finished
    assert dirty.usage() == clean.usage()


@settings(deadline=None)
@given(
    data=st.recursive(
        st.none() | st.integers() | st.text(max_size=3),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["type", "usage", "message", "response", "delta", "choices", "error", "input_tokens"]),
                x,
            )
        ),
    )
)
def test_any_json_in_any_place_is_read_without_an_error(data: object) -> None:
    text = json.dumps(data).encode()
    for protocol in STREAMS:
        for streamed in (True, False):
            meter = Meter(asked(protocol), streamed=streamed)
            meter.feed(b"data: " + text + b"\n\n" if streamed else text)
            meter.finish()
            assert meter.usage().input_tokens >= 0
    only_usage(b"data: " + text + b"\n\n")


def test_an_endless_event_is_not_kept_in_memory() -> None:
    data, blocks = EventData(), EventBlocks(limit=1000)
    passed = 0
    for _ in range(40):
        data.feed(b"data: " + b"x" * (1 << 20))
        passed += sum(map(len, blocks.feed(b"y" * 1000)))
    assert passed >= 39_000
    assert len(data._lines._held) <= 16 << 20


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("at 2026-11-21T05:13:48Z", "at 2027-01-02 11:00:00.123+01:00"),
        ("in /tmp/pytest-1/x y", "in /tmp/hv/long/path y"),
        ("id 8c1f9e0a-1111-2222-3333-444455556666", "id 00000000-1111-2222-3333-444455556667"),
        ("ses_1fca4b87d001R1PJ7P", "ses_e035b5017ffewXtqrh"),
        ("<system-reminder>one</system-reminder>do  it", "do\tit <system-reminder>two</system-reminder>"),
        ("commit 1a2b3c4d5e6f7a8b9c0d", "commit ffffffffffffffff0000"),
        ("took 0.53s", "took 12 seconds"),
    ],
)
def test_changes_from_run_to_run_do_not_count(a: str, b: str) -> None:
    assert normalized(a) == normalized(b)


@pytest.mark.parametrize(("a", "b"), [("fix a.py", "fix b.py"), ("add 1", "add 2"), ("<b>x</b>", "<b>y</b>")])
def test_the_content_of_a_message_counts(a: str, b: str) -> None:
    assert normalized(a) != normalized(b)


def test_text_made_to_be_slow_is_normalized_quickly() -> None:
    assert normalized("<system-reminder>" * 20_000 + "x").endswith("x")
    assert normalized("a" * (1 << 20) + "b").endswith("b")


def test_prices_are_found_for_gateways_too_and_unknown_models_have_none() -> None:
    prices, usage = Prices(), Usage(input_tokens=100_000, output_tokens=100_000)
    assert prices.cost("anthropic", "claude-sonnet-4-5", usage) == pytest.approx(1.8)
    assert prices.cost("openai", "claude-sonnet-4-5", usage) == pytest.approx(1.8)
    for model in ("", "no-such-model", "\ud800", "x" * 10_000):
        assert prices.cost("openai", model, usage) is None


def test_an_event_quota_runs_out_counts_skipped_events_and_refills() -> None:
    class Held:
        at = 0.0

        def now(self) -> float:
            return self.at

        monotonic = now

        async def sleep(self, seconds: float) -> None: ...

    clock = Held()
    allowance = EventQuota(clock, most=2, per_second=1.0)
    assert [allowance.take() for _ in range(5)] == [True, True, False, False, False]
    clock.at = 1.0
    assert allowance.take() and "3 more" in allowance.note_skipped() and allowance.note_skipped() == ""
