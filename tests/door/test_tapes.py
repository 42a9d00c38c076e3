"""Recorded answers are replayed by the content of the request, not by its time."""

# ruff: noqa: SIM117 - a server, a door and a guest on one line read badly
from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic

import anyio
import httpx2
import pytest

from hiveyard.core.errors import BadTape, NotOnTape
from hiveyard.core.events import ModelCalled, ModelFailed, Notice
from hiveyard.door.model_request import parse_request
from hiveyard.door.routes import Protocol, Route
from hiveyard.door.settings import DoorSettings
from hiveyard.door.tape import Ask, Entry, Tape, ask_of, encode_chunk, scan
from hiveyard.door.tape_recorder import Recorder, check
from hiveyard.testing.model import scripted_model
from hiveyard.testing.script import Call, File, Step

from . import bodies
from .house import KEY, MemoryJournal, door, guest, message, until
from .upstream import streamed, upstream, whole

pytestmark = pytest.mark.anyio

TOOLS = [{"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}}}]
SCRIPT = (
    Step(thinking="Hm.", text="I will look.", calls=[Call(shell="pytest -q")]),
    Step(calls=[Call(write=File(path="a.py", content="x = 1\n"))]),
    Step(text="Done ☂."),
)


def round_of(number: int, *, text: str = "make the test pass", results: Sequence[str] = ()) -> dict[str, object]:
    """Return an agent's request after `number` rounds of tools."""
    messages: list[dict[str, object]] = [{"role": "user", "content": text}]
    for index in range(number):
        call = {"type": "tool_use", "id": f"toolu_{index}", "name": "Bash", "input": {"command": "x"}}
        result = results[index] if index < len(results) else "ok"
        messages.append({"role": "assistant", "content": [call]})
        messages.append(
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": f"toolu_{index}", "content": result}]}
        )
    return {"model": "claude-sonnet-4-5", "max_tokens": 9, "stream": True, "tools": TOOLS, "messages": messages}


async def test_a_recorded_conversation_is_replayed_byte_for_byte_without_a_model(tmp_path: Path) -> None:
    path, first, second = tmp_path / "t.jsonl", MemoryJournal(), MemoryJournal()
    asked = [round_of(number) for number in range(3)]
    recorder = Recorder(path)
    async with scripted_model(SCRIPT) as model, door(model.url, first, tmp_path, recorder=recorder) as opened:
        async with guest(opened) as client:
            recorded = [(await client.post("/anthropic/v1/messages", json=body)).content for body in asked]
    recorder.close()
    async with door("", second, tmp_path, tape=Tape.load(path), settings=DoorSettings()) as opened:
        async with guest(opened) as client:
            order = [2, 0, 1, 1, 2]
            played = [(await client.post("/anthropic/v1/messages", json=asked[n])).content for n in order]
    assert played == [recorded[n] for n in order]
    assert b"Done \xe2\x98\x82" in recorded[2]
    assert [call.source for call in second.of(ModelCalled)] == ["tape"] * 5
    usages = [call.usage for call in first.of(ModelCalled)]
    assert [call.usage for call in second.of(ModelCalled)] == [usages[n] for n in order]
    assert path.stat().st_mode & 0o077 == 0


async def test_other_results_other_times_and_other_paths_are_the_same_request(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorder = Recorder(path)
    journal = MemoryJournal()
    text = "fix it <system-reminder>Today is 2026-11-21 in /tmp/a1</system-reminder>"
    async with scripted_model(SCRIPT) as model, door(model.url, journal, tmp_path, recorder=recorder) as opened:
        async with guest(opened) as client:
            body = round_of(1, text=text, results=["1 failed in 0.53s at /tmp/pytest-1/x"])
            recorded = await client.post("/anthropic/v1/messages", json=body)
    recorder.close()
    again = "fix  it\n<system-reminder>Today is 2027-01-01 in /home/b</system-reminder>"
    async with (
        door("", journal, tmp_path, tape=Tape.load(path), settings=DoorSettings()) as opened,
        guest(opened) as client,
    ):
        body = round_of(1, text=again, results=["something else entirely"])
        assert (await client.post("/anthropic/v1/messages", json=body)).content == recorded.content


async def test_a_request_that_is_not_on_the_tape_is_reported_with_the_nearest_one(tmp_path: Path) -> None:
    journal = MemoryJournal()
    tape = Tape([entry(round_of(0)), entry(round_of(1))], name="demo.jsonl")
    async with door("", journal, tmp_path, tape=tape, settings=DoorSettings()) as opened, guest(opened) as client:
        for body in (round_of(2), round_of(0, text="something else")):
            got = await client.post("/anthropic/v1/messages", json=body)
            assert got.status_code == 400 and got.headers["x-should-retry"] == "false"
            assert got.json()["error"]["type"] == "invalid_request_error"
        other = await client.post("/openai/v1/responses", json={"input": "x"})
        assert "nothing is recorded" in other.json()["error"]["message"]
    failures = [failed.failure for failed in journal.of(ModelFailed)]
    assert {failure.code for failure in failures} == {"door.not_on_tape"}
    assert "round 2 of “make the test pass”; the nearest is" in failures[0].message
    assert "round 1 of" in failures[0].message and "“something else”" in failures[1].message


def entry(
    body: object, *, path: str = "/v1/messages", status: int = 200, said: bytes = b"{}", complete: bool = True
) -> Entry:
    protocol: dict[str, Protocol] = {"/v1/messages": "anthropic", "/v1/responses": "openai-responses"}
    vendor = "anthropic" if path.startswith("/v1/messages") else "openai"
    asked = parse_request(Route(vendor, "POST", path, protocol.get(path, "")), body=json.dumps(body).encode())  # type: ignore[arg-type]
    headers = (("content-type", "text/event-stream"),)
    chunks = ((0.0, encode_chunk(said)),)
    return Entry(ask=ask_of(asked), status=status, headers=headers, complete=complete, chunks=chunks)


def found(tape: Tape, body: object, **options: str) -> str | object:
    [(_, said)] = tape.find(entry(body, **options).ask).chunks  # type: ignore[arg-type]
    return said


def test_a_good_answer_wins_over_a_failure_at_any_position() -> None:
    good, bad = entry(round_of(0), said=b"good"), entry(round_of(0), status=529, said=b"bad")
    cut = entry(round_of(0), said=b"cut", complete=False)
    assert found(Tape([good, bad, cut]), round_of(0)) == "good"
    assert found(Tape([bad, good]), round_of(0)) == "good"
    assert found(Tape([bad]), round_of(0)) == "bad"


def test_the_same_text_in_another_turn_or_with_other_results_is_another_request() -> None:
    def body(turns: int, result: str) -> dict[str, object]:
        last = round_of(1, text="go on", results=[result])
        before = [{"role": "user", "content": "go on"}, {"role": "assistant", "content": "ok"}] * turns
        return {**last, "messages": before + last["messages"]}  # type: ignore[operator]

    tape = Tape([entry(body(turn, result), said=f"{turn}{result}".encode()) for turn in range(3) for result in "ab"])
    for turn in range(3):
        for result in "ab":
            assert found(tape, body(turn, result)) == f"{turn}{result}"


def test_side_requests_are_matched_by_system_prompt_or_by_similar_text() -> None:
    def title(text: str, system: str = "") -> dict[str, object]:
        return {"model": "m", "stream": True, "system": system, "messages": [{"role": "user", "content": text}]}

    tape = Tape(
        [
            entry(title("Make a title for: fix the parser", "You make titles."), said=b"title"),
            entry(title("Is this a new topic: fix the parser", "You see topics."), said=b"topic"),
            entry(title("quota"), said=b"quota"),
            entry({"messages": []}, path="/v1/messages/count_tokens", said=b"7"),
        ]
    )
    assert found(tape, title("anything else", "You see topics.")) == "topic"
    assert found(tape, title("Make a title for: fix the parser", "You make titles.")) == "title"
    assert found(tape, title("quotas")) == "quota"
    assert found(tape, round_of(5), path="/v1/messages/count_tokens") == "7"
    with pytest.raises(NotOnTape):
        tape.find(entry(title("completely different")).ask)


def test_a_request_with_tools_never_gets_the_answer_of_a_side_request() -> None:
    side = {name: value for name, value in round_of(0).items() if name != "tools"}
    with pytest.raises(NotOnTape):
        Tape([entry(side)]).find(entry(round_of(0)).ask)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/chat/completions",
            {
                "messages": [
                    {"role": "system", "content": "You are."},
                    {"role": "user", "content": [{"type": "text", "text": "first"}]},
                    {"role": "assistant", "content": "yes"},
                    {"role": "user", "content": "second at 2026-11-21T05:00:00Z"},
                    {"role": "assistant", "tool_calls": [{}]},
                    {"role": "tool", "content": "r1"},
                    {"role": "tool", "content": "r2"},
                    {"role": "assistant", "tool_calls": [{}]},
                    {"role": "tool", "content": "r3"},
                ]
            },
        ),
        (
            "/v1/responses",
            {
                "instructions": "You are.",
                "input": [
                    {
                        "role": "user",
                        "content": [{"type": "input_text", "text": "<environment_context>x</environment_context>"}],
                    },
                    {"role": "user", "content": "first"},
                    {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yes"}]},
                    {"type": "message", "role": "user", "content": "second at 2027-01-01"},
                    {"type": "reasoning", "summary": []},
                    {"type": "function_call", "name": "x"},
                    {"type": "function_call", "name": "y"},
                    {"type": "function_call_output", "output": "r1"},
                    {"type": "function_call_output", "output": "r2"},
                    {"type": "function_call", "name": "x"},
                    {"type": "function_call_output", "output": "r3"},
                ],
            },
        ),
    ],
)
def test_the_position_in_a_conversation_is_found_in_the_other_protocols_too(path: str, body: object) -> None:
    protocol: Protocol = "openai-chat" if "chat" in path else "openai-responses"
    asked = parse_request(Route("openai", "POST", path, protocol), body=json.dumps(body).encode())
    assert (asked.place.turn, asked.place.round, asked.place.text) == (2, 2, "second at <time>")
    assert asked.system == "You are."
    assert asked.place.results != ""


async def test_a_cut_answer_is_recorded_and_cut_again(tmp_path: Path) -> None:
    path, journal = tmp_path / "t.jsonl", MemoryJournal()
    recorder = Recorder(path)
    async with upstream(streamed(bodies.ANTHROPIC_STREAM[:700], cut=True)) as up:
        async with door(up.url, MemoryJournal(), tmp_path, recorder=recorder) as opened, guest(opened) as client:
            with pytest.raises(httpx2.RemoteProtocolError):
                await client.post("/anthropic/v1/messages", json=message(stream=True))
    recorder.close()
    async with (
        door("", journal, tmp_path, tape=Tape.load(path), settings=DoorSettings()) as opened,
        guest(opened) as client,
    ):
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/anthropic/v1/messages", json=message(stream=True))
    assert not journal.of(ModelCalled)[0].complete


async def test_a_round_is_recorded_even_if_the_guest_disconnects_after_the_end(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorder = Recorder(path)
    async with upstream(streamed(bodies.ANTHROPIC_STREAM)) as up:
        async with door(up.url, MemoryJournal(), tmp_path, recorder=recorder) as opened, guest(opened) as client:
            async with recorder._reading:  # other requests are being parsed
                async with client.stream("POST", "/anthropic/v1/messages", json=message(stream=True)) as answer:
                    async for line in answer.aiter_lines():
                        if line == "event: message_stop":
                            break
                with anyio.move_on_after(1):
                    await until(lambda: not opened.busy)
            await until(lambda: not opened.busy)
    recorder.close()
    with path.open("rb") as file:
        assert [entry.complete for entry in scan(file, path)[0]] == [True]


async def test_binary_answers_are_recorded_unchanged(tmp_path: Path) -> None:
    data = bytes(range(256)) + "☂".encode()[:2]
    recorder = Recorder(tmp_path / "t.jsonl")
    async with (
        upstream(whole(data, kind="image/png")) as up,
        door(up.url, MemoryJournal(), tmp_path, recorder=recorder) as opened,
    ):
        async with guest(opened) as client:
            await client.get("/openai/v1/models")
    recorder.close()
    tape = Tape.load(tmp_path / "t.jsonl")
    async with (
        door("", MemoryJournal(), tmp_path, tape=tape, settings=DoorSettings()) as opened,
        guest(opened) as client,
    ):
        assert (await client.get("/openai/v1/models")).content == data


async def test_a_tape_has_a_header_and_no_key(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "t.jsonl")
    async with (
        scripted_model(SCRIPT, key=KEY) as model,
        door(model.url, MemoryJournal(), tmp_path, recorder=recorder) as opened,
    ):
        async with guest(opened) as client:
            await client.post("/anthropic/v1/messages", json=round_of(0, text=f"my key is {KEY}"))
    recorder.close()
    first, second = (tmp_path / "t.jsonl").read_text().splitlines()
    assert json.loads(first)["tape"] == 1
    assert json.loads(second)["ask"]["path"] == "/anthropic/v1/messages"
    assert KEY not in second and "placeholder" not in second


def test_an_incomplete_last_line_is_ignored_and_cut_when_recording_continues(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    lines = b'{"tape":1}\n{"ask":{"method":"GET","path":"/openai/v1/models"},"status":200}\n'
    path.write_bytes(lines + b'{"ask":{"method":"GET","pa')
    assert len(Tape.load(path)) == 1
    Recorder(path).close()
    assert path.read_bytes() == lines


RECORD = """
import sys, anyio, pathlib
from hiveyard.door.tape_recorder import Recorder, check
from hiveyard.door.tape import Ask, Entry

async def record(path, name):
    recorder = Recorder(path)
    for number in range(30):
        chunks = ((0.0, "x" * 300_000),)
        await recorder.add(Entry(ask=Ask(method="POST", path="/x", text=f"{name} {number}"), status=200, chunks=chunks))

anyio.run(record, pathlib.Path(sys.argv[1]), sys.argv[2])
"""


async def test_two_may_record_on_one_tape_at_once(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(anyio.run_process, [sys.executable, "-c", RECORD, str(path), name])
    with path.open("rb") as file:
        entries, _ = scan(file, path)
    assert sorted(entry.ask.text for entry in entries) == sorted(f"{a} {n}" for a in "abc" for n in range(30))


async def test_an_incomplete_line_of_a_killed_recorder_is_cut_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    recorder = Recorder(path)
    await recorder.add(entry(round_of(0), said=b"a"))
    with path.open("ab") as other:
        other.write(b'{"ask":{"text":"' + b"x" * 200_000)
    await recorder.add(entry(round_of(1), said=b"b"))
    recorder.close()
    assert [found(Tape.load(path), round_of(number)) for number in (0, 1)] == ["a", "b"]


def test_checking_a_tape_for_recording_does_not_change_it(tmp_path: Path) -> None:
    """Another process may be writing the last line at that moment."""
    path = tmp_path / "t.jsonl"
    check(path)
    assert not path.exists()
    half = b'{"tape":1}\n{"ask":{"method":"GET","pa'
    for content in (b"", half):
        path.write_bytes(content)
        check(path)
        assert path.read_bytes() == content
    path.write_bytes(b"hello\n")
    for bad, expected in (
        (path, "is not a tape"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none" / "t", "directory is missing"),
    ):
        with pytest.raises(BadTape, match=expected):
            check(bad)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "line 1"),
        (b"hello\n", "is not a tape: line 1"),
        (b'{"tape":2}\n', "version 2"),
        (b'{"tape":1}\n{"ask":5}\n{}\n', "line 2"),
        (b'{"tape":1}\n\n{"ask":{"method":"GET","path":"/"},"status":7}\n', "line 3"),
        (b'{"tape":1}\n{"ask":{"method":"GET","path":"/"},"status":200,"chunks":[[0,{"b64":"?"}]]}\n', "line 2"),
        (b'{"tape":1}\n{"ask":{"method":"GET","path":"/"},"status":200,"chunks":[[0,"\xff"]]}\n', "line 2"),
    ],
)
def test_a_bad_tape_is_an_error_that_names_the_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    with pytest.raises(BadTape, match=expected):
        Tape.load(path)
    if content:
        with pytest.raises(BadTape):
            Recorder(path)
        assert path.read_bytes() == content


def test_a_missing_tape_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadTape, match="No such file"):
        Tape.load(tmp_path / "none.jsonl")
    with pytest.raises(BadTape, match="Is a directory"):
        Recorder(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for opened in (Tape.load, Recorder):
        with pytest.raises(BadTape, match="not a regular file"):
            opened(tmp_path / "pipe")


async def test_real_time_keeps_the_pace_and_the_default_does_not_wait(tmp_path: Path) -> None:
    slow = Entry(
        ask=Ask(method="GET", path="/openai/v1/models"),
        status=200,
        chunks=((0.0, "a"), (300.0, "b"), (3_600_000.0, "c")),
    )
    async with (
        door("", MemoryJournal(), tmp_path, tape=Tape([slow]), settings=DoorSettings()) as opened,
        guest(opened) as client,
    ):
        assert (await client.get("/openai/v1/models")).content == b"abc"
    paced = Tape([Entry(ask=slow.ask, status=200, chunks=slow.chunks[:2])], real_time=True)
    async with (
        door("", MemoryJournal(), tmp_path, tape=paced, settings=DoorSettings()) as opened,
        guest(opened) as client,
    ):
        begin = monotonic()
        assert (await client.get("/openai/v1/models")).content == b"ab"
        assert monotonic() - begin >= 0.3


async def test_a_full_disk_stops_the_recording_and_not_the_session(tmp_path: Path) -> None:
    journal = MemoryJournal()
    recorder = Recorder(tmp_path / "t.jsonl")
    recorder.close()  # further writes fail
    async with (
        upstream(whole(bodies.ANTHROPIC_WHOLE)) as up,
        door(up.url, journal, tmp_path, recorder=recorder) as opened,
    ):
        async with guest(opened) as client:
            assert (await client.post("/anthropic/v1/messages", json=message())).content == bodies.ANTHROPIC_WHOLE
    assert [notice.code for notice in journal.of(Notice)] == ["door.not_recorded"]


async def test_the_budget_counts_on_a_tape_too(tmp_path: Path) -> None:
    journal = MemoryJournal()
    tape = Tape([entry(round_of(0), said=bodies.ANTHROPIC_STREAM)])
    async with door("", journal, tmp_path, tape=tape, settings=DoorSettings(), budget_usd=0.001) as opened:
        async with guest(opened) as client:
            statuses = [(await client.post("/anthropic/v1/messages", json=round_of(0))).status_code for _ in range(2)]
        await until(lambda: not opened.busy)
    assert statuses == [200, 400]
