"""A parser gives events and a verdict for any output of a guest, and never an error."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiveyard import agents
from hiveyard.core.errors import HiveyardError
from hiveyard.core.events import AgentEvent, AgentOutput, Event
from tests.transcripts.record import CASES, transcript

NAMES = tuple(name for name in agents.names() if name != "acp")  # it has only a driver
ASKED = {"role": "assistant", "id": "m", "metadata": {"inference": {"provider": "anthropic"}}}
REAL = {
    agent: sorted({line for case in cases for line in transcript(agent, case).stdout.splitlines() if line[:1] == b"{"})
    for agent, cases in CASES.items()
}
CODES = {kind.code for kind in HiveyardError.__subclasses__()} | {
    "agent.failed",
    "agent.nothing_done",
    "credentials.key_refused",
    "door.rate_limited",
    "door.upstream_failed",
    "bad_input",
    "",
}
_WORDS = """type subtype message content part state error data tokens input output cost reason usage result is_error
tool_use_result structuredPatch lines filePath metadata files patch sessionID session_id model id name
item items changes path kind payload info text thinking toolCall toolResult value arguments inference role
former accumulated_usage"""
_KEYS = st.sampled_from(re.findall(r"\w+", _WORDS)) | st.text(max_size=4)
JSONS: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=6),
    max_leaves=12,
)


def read(name: str, lines: Sequence[bytes], exit_code: int | None = 0, stderr: str = "") -> list[AgentEvent]:
    parser = agents.by_name(name).parser()
    events = [event for line in lines for event in parser.feed(line)]
    verdict = parser.verdict(exit_code, stderr)
    assert verdict.code in CODES
    assert verdict.ok is (verdict.code == "")
    for event in events:  # it can be stored, and is bounded
        stored = msgspec.json.encode(Event(seq=1, at=0.0, session="s", body=event))
        assert msgspec.json.decode(stored, type=Event).body == event
    return events


@pytest.mark.parametrize("name", NAMES)
@given(lines=st.lists(st.binary(max_size=200), max_size=5), code=st.none() | st.integers(0, 255), stderr=st.text())
def test_any_bytes(name: str, lines: list[bytes], code: int | None, stderr: str) -> None:
    read(name, lines, code, stderr)


@pytest.mark.parametrize("name", NAMES)
@given(said=st.lists(JSONS, max_size=4), code=st.none() | st.integers(0, 255))
def test_any_json(name: str, said: list[object], code: int | None) -> None:
    read(name, [json.dumps(value).encode() for value in said], code)


@pytest.mark.parametrize("name", sorted(REAL))
@settings(max_examples=100)
@given(data=st.data())
def test_real_lines_with_values_of_other_kinds(name: str, data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.sampled_from(REAL[name]), min_size=1, max_size=4))
    read(name, [_bent(json.loads(line), data) for line in lines], data.draw(st.sampled_from([0, 1, 143, None])))


def _bent(value: object, data: st.DataObject) -> bytes:
    """A real line in which one value, somewhere, is something else."""
    target = value
    while isinstance(target, dict) and target:
        key = data.draw(st.sampled_from(sorted(target)))
        if not isinstance(target[key], dict) or not target[key] or data.draw(st.integers(0, 4)) == 0:
            target[key] = data.draw(JSONS)
            break
        target = target[key]
    return json.dumps(value).encode()


@pytest.mark.parametrize("name", sorted(REAL))
@settings(max_examples=100)
@given(data=st.data())
def test_real_lines_with_bytes_changed_or_cut_off(name: str, data: st.DataObject) -> None:
    line = bytearray(data.draw(st.sampled_from(REAL[name])))
    for _ in range(data.draw(st.integers(1, 4))):
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
    read(name, [bytes(line[: data.draw(st.integers(0, len(line)))])])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "line",
    [
        b"plain words",
        b"[1, 2]",
        b"{",
        b'{"type": "nothing we know"}',
        b"\xff\xfe\x00binary",
        b"[" * 100_000,
        b'{"type":' * 50_000,
        b'{"type": "result", "total_cost_usd": 1e999}',
    ],
    ids=lambda line: repr(line[:20]),
)
def test_a_line_without_meaning_is_kept_as_output(name: str, line: bytes) -> None:
    events = read(name, [line])
    assert [type(event) for event in events] == [AgentOutput] or name == "claude"


@pytest.mark.parametrize("name", NAMES)
def test_a_line_of_many_megabytes_gives_a_bounded_event(name: str) -> None:
    words = "x" * (8 << 20)
    lines = [
        words.encode(),
        json.dumps({"type": "assistant", "message": {"content": [{"type": "text", "text": words}]}}).encode(),
        json.dumps({"type": "text", "sessionID": "s", "part": {"text": words}}).encode(),
        json.dumps({"type": "item.completed", "item": {"type": "command_execution", "command": words}}).encode(),
        json.dumps({"type": "message", "message": {**ASKED, "content": [{"type": "text", "text": words}]}}).encode(),
        json.dumps({"type": "complete"}).encode(),
    ]
    events = read(name, lines)
    assert events
    assert all(len(msgspec.json.encode(event)) < 200_000 for event in events)


@pytest.mark.parametrize("name", NAMES)
def test_half_a_surrogate_pair_and_a_nul_can_be_stored(name: str) -> None:
    lines = [
        b'{"type":"assistant","message":{"content":[{"type":"text","text":"a\\ud83d b \\u0000"}]}}',
        b'{"type":"text","sessionID":"s","part":{"text":"a\\ud83d b \\u0000"}}',
        b'{"type":"item.completed","item":{"type":"agent_message","text":"a\\ud83d b \\u0000"}}',
        b'{"type":"message","message":{"role":"assistant","content":[{"type":"error","message":"a\\ud83d \\u0000"}]}}',
    ]
    assert all("\0" not in repr(event) for event in read(name, lines))
