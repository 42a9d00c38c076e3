"""Agents in their terminal: the commands, and the feeds that tests/transcripts/record_terminals.py recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiveyard import agents
from hiveyard.agents.claude.terminal import GUARD, _safe
from hiveyard.agents.shared.guest_terminal import Feed, Tail, delivery
from hiveyard.agents.shared.terminal_process import argv_of
from hiveyard.core.events import AgentAsked, AgentEnded, AgentOutput, AgentPrompted, AgentStarted
from hiveyard.core.ports import HasTerminal, Turn
from tests.agents.terminal_programs import heard
from tests.agents.test_processes import turn
from tests.transcripts.record_terminals import CASES, expect, home

ALL = [(agent, case) for agent, cases in CASES.items() for case in cases]
SEATED = tuple(CASES)


def adapter(name: str) -> HasTerminal:
    return cast(HasTerminal, agents.by_name(name))


def lines(agent: str, case: str) -> list[bytes]:
    return (home(agent) / f"{case}.feed").read_bytes().splitlines(keepends=True)


def test_a_command_line_has_no_terminal_program() -> None:
    assert [name for name in agents.names() if isinstance(agents.by_name(name), HasTerminal)] == list(SEATED)


@pytest.mark.parametrize("agent", SEATED)
def test_the_terminal_is_called_agent_and_its_feed_outlives_the_machine(agent: str) -> None:
    agent_terminal = adapter(agent).agent_terminal(turn())
    assert (agent_terminal.terminal.name, agent_terminal.terminal.terminal, agent_terminal.terminal.command.cwd) == (
        "agent",
        True,
        "/session/repo",
    )
    assert agent_terminal.feed == f"/session/state/{agent}/feed.jsonl"


@pytest.mark.parametrize("agent", SEATED)
def test_neither_prompt_nor_key_is_in_a_command_line(agent: str) -> None:
    told = turn(prompt="/session/prompts/7.txt", conversation="known-1")
    for command in (
        adapter(agent).agent_terminal(told).terminal.command,
        adapter(agent).send_prompt(told),
        adapter(agent).interrupt(told),
    ):
        assert "hv-placeholder" not in json.dumps(command.words())
        assert sum(map(len, command.words())) < 60_000
    assert "/session/prompts/7.txt" in json.dumps(adapter(agent).send_prompt(told).words())


@pytest.mark.parametrize("agent", SEATED)
def test_a_prompt_without_a_program_fails_with_a_reason(agent: str, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt"
    prompt.write_text(" \n")
    argv = adapter(agent).send_prompt(turn(prompt=str(prompt), state=str(tmp_path))).words()
    done = subprocess.run(argv, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"the prompt is empty\n")
    argv = adapter(agent).interrupt(turn(state=str(tmp_path))).words()
    assert subprocess.run(argv, capture_output=True, check=False).returncode == 0, "nothing at work is a success"


@pytest.mark.parametrize(("agent", "case"), ALL, ids=str)
def test_a_recorded_feed_gives_the_expected_events(agent: str, case: str) -> None:
    assert expect(agent, case) == (home(agent) / f"{case}.expected").read_text(encoding="utf-8")


@pytest.mark.parametrize(("agent", "case"), ALL, ids=str)
def test_every_line_of_a_feed_is_understood(agent: str, case: str) -> None:
    events = heard(adapter(agent).feed_parser(), b"".join(lines(agent, case)))
    assert [event for event in events if isinstance(event, AgentOutput)] == []


@pytest.mark.parametrize(("agent", "case"), ALL, ids=str)
def test_each_turn_begins_with_a_prompt_and_ends_once(agent: str, case: str) -> None:
    working = False
    for event in heard(adapter(agent).feed_parser(), b"".join(lines(agent, case))):
        if isinstance(event, AgentEnded):
            assert working
            working = False
        elif isinstance(event, AgentPrompted):
            working = True
        else:
            assert working or isinstance(event, AgentStarted) or case == "resumed"
    assert not working


@pytest.mark.parametrize(("agent", "case"), ALL, ids=str)
def test_a_restarted_daemon_continues_where_it_was(agent: str, case: str) -> None:
    feed = lines(agent, case)
    for at in range(0, len(feed), 5):
        again = adapter(agent).feed_parser()
        first = heard(again, b"".join(feed[:at]))
        assert first + heard(again, b"".join(feed[at:])) == heard(adapter(agent).feed_parser(), b"".join(feed))


@pytest.mark.parametrize("agent", SEATED)
@pytest.mark.parametrize("case", ["interrupted-speaking", "interrupted-tool"])
def test_an_interrupted_turn_is_reported(agent: str, case: str) -> None:
    events = heard(adapter(agent).feed_parser(), b"".join(lines(agent, case)))
    end = next(event for event in events if isinstance(event, AgentEnded))
    assert (end.is_error, end.reason) == (True, "interrupted")


def test_opencode_continues_after_a_summary_and_each_prompt_is_reported_once() -> None:
    """Before a summary there is an error; behind the second one the program repeats the prompt to the model."""
    events = heard(adapter("opencode").feed_parser(), b"".join(lines("opencode", "compacted")))
    assert [event.text for event in events if isinstance(event, AgentPrompted)] == [
        "[[script:long]] please",
        "[[script:longer]] please",
    ]
    assert [event for event in events if isinstance(event, AgentEnded)] == [
        AgentEnded(is_error=False, text="The script is at its end.", reason="stop"),
        AgentEnded(is_error=False, text="at last", reason="stop"),
    ]


def opencode_told(kind: str, **properties: object) -> bytes:
    return json.dumps({"said": {"type": kind, "properties": properties}}).encode() + b"\n"


_FAILED = {"name": "APIError", "data": {"message": "no more"}}
_ABORTED = {"name": "MessageAbortedError", "data": {}}


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ([], "error"),
        ([opencode_told("session.error", error=_FAILED)], "error"),
        ([opencode_told("session.error", error=_ABORTED)], "interrupted"),
    ],
)
def test_a_summary_is_not_the_last_step_of_opencode(last: list[bytes], reason: str) -> None:
    feed = lines("opencode", "compacted")
    summed = next(at for at in range(len(feed)) if b'"reason":"stop"' in feed[at]) + 1
    events = heard(adapter("opencode").feed_parser(), b"".join([*feed[:summed], *last, opencode_told("session.idle")]))
    assert [(end.is_error, end.reason) for end in events if isinstance(end, AgentEnded)] == [(True, reason)]


def test_an_error_after_the_last_step_of_opencode_ends_the_turn() -> None:
    feed = lines("opencode", "compacted")
    idle = next(at for at in range(len(feed)) if b'"session.idle"' in feed[at])
    failed = opencode_told("session.error", error=_FAILED)
    events = heard(adapter("opencode").feed_parser(), b"".join([*feed[:idle], failed, feed[idle]]))
    assert [event for event in events if isinstance(event, AgentEnded)] == [
        AgentEnded(is_error=True, text="no more", reason="error")
    ]


@pytest.mark.parametrize("agent", SEATED)
def test_a_question_is_asked_once(agent: str) -> None:
    events = heard(adapter(agent).feed_parser(), b"".join(lines(agent, "asked")))
    assert [event for event in events if isinstance(event, AgentAsked)] == [AgentAsked(message="Which way?")]


@pytest.mark.parametrize("agent", SEATED)
def test_a_program_that_ended_ends_its_turn(agent: str) -> None:
    feed = lines(agent, "edit")
    begun = next(at for at in range(len(feed)) if b"script:edit" in feed[at]) + 1
    for sign in (b'{"seat":"ended","code":137}\n', b'{"seat":"started"}\n'):
        events = heard(adapter(agent).feed_parser(), b"".join([*feed[:begun], b'{"torn\n', sign]))
        assert [event.reason for event in events if isinstance(event, AgentEnded)] == ["gone"]


_KEYS = ("type", "said", "hook", "message", "content", "origin", "kind", "uuid", "attachment", "prompt", "properties",
         "part", "info", "sessionID", "state", "tool_input", "questions", "usage", "subtype")  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=6),
    max_leaves=20,
)
_TYPES = ("user", "assistant", "system", "attachment", "message.updated", "message.part.updated", "question.asked",
          "permission.asked", "session.error", "session.idle", "session.status", "hiveyard.ready")  # fmt: skip


@pytest.mark.parametrize("agent", SEATED)
@given(kind=st.sampled_from(_TYPES), body=st.dictionaries(st.sampled_from(_KEYS), _JSON, max_size=6))
def test_no_line_of_a_hostile_guest_breaks_the_feed_parser(agent: str, kind: str, body: dict[str, object]) -> None:
    listener = adapter(agent).feed_parser()
    events = {"type": kind, "properties": body}
    hooks = [{"hook": {**body, "hook_event_name": name}} for name in ("SessionStart", "PermissionRequest", "Stop")]
    for line in ({"said": {**body, "type": kind}}, {"said": events}, *hooks, body):
        listener.feed(json.dumps(line).encode())


@pytest.mark.parametrize("text", ["/clear", "  /help me", "exit", "QUIT ", ":wq"])
def test_text_that_looks_like_a_command_is_guarded(text: str) -> None:
    assert _safe(text) == GUARD + text


@pytest.mark.parametrize("text", ["fix a/b", "!ls", "exit the loop", "# note"])
def test_a_plain_prompt_stays_as_it_is(text: str) -> None:
    assert _safe(text) == text
    assert _safe(f"{text}\\") == f"{text}\\ "


def test_an_incomplete_last_line_of_a_feed_is_removed(tmp_path: Path) -> None:
    feed = Feed(str(tmp_path / "below" / "feed"))
    feed.prepare()
    feed.add({"at": ["a.jsonl", 7], "said": {}})
    feed.path.write_bytes(feed.path.read_bytes() + b'{"at":["a.jsonl",90],"sa')
    feed.prepare()
    feed.add({"seat": "started"})
    assert feed.positions() == {"a.jsonl": 7}
    assert feed.path.read_bytes().splitlines()[1:] == [b'{"seat":"started"}']
    feed.path.write_bytes(b"x" * 200_000)
    feed.prepare()
    assert feed.size() == 0


def test_a_tail_returns_complete_lines_once(tmp_path: Path) -> None:
    tail = Tail(tmp_path / "lines")
    assert list(tail.lines()) == []
    tail.path.write_bytes(b'{"a":1}\n\nnonsense\n{"b"')
    assert [line.get("a", line.get("type")) for line in tail.lines()] == [1, "unreadable"]
    tail.path.write_bytes(tail.path.read_bytes() + b":2}\n")
    assert list(tail.lines()) == [{"b": 2}]


_STUBBORN = """
import sys
from hiveyard.agents.shared.guest_terminal import Feed, run
feed = Feed(sys.argv[1])
feed.prepare()
deaf = "import signal; signal.signal(15, 1); signal.signal(1, 1); print('deaf', flush=True); signal.pause()"
script = "trap : INT TERM HUP; '%s' -c \\"%s\\"; echo put back; exit 3" % (sys.executable, deaf)
sys.exit(run(["sh", "-c", script], {}, feed, lambda: None))
"""


def test_a_program_that_ignores_signals_is_killed_and_moved_files_are_restored(tmp_path: Path) -> None:
    feed = tmp_path / "feed"
    argv = [sys.executable, "-c", _STUBBORN, str(feed)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as agent_terminal:
        assert agent_terminal.stdout is not None
        assert agent_terminal.stdout.readline() == b"deaf\n"
        agent_terminal.send_signal(signal.SIGHUP)
        assert agent_terminal.stdout.read() == b"put back\n"
        assert agent_terminal.wait() == 3
    assert feed.read_text().splitlines() == ['{"seat":"started"}', '{"seat":"ended","code":3}']


# An opencode on a machine that is far too slow: it takes longer than its first request may, drops its first
# conversation, and ends the first stream of events.
_SLOW = """
import json, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    dropped = False
    streams = 0

    def do_GET(self):
        time.sleep(3)
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        Handler.streams += 1
        if Handler.streams > 2:
            event = b'data: {"type": "session.idle", "properties": {}}\\n'
            self.wfile.write(b"%x\\r\\n%b\\r\\n" % (len(event), event))
            time.sleep(1000)
        self.wfile.write(b"0\\r\\n\\r\\n")

    def do_POST(self):
        if self.path == "/session" and not Handler.dropped:
            Handler.dropped = self.close_connection = True
            return
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if "prompt" in self.path:
            print(self.path, data.decode(), flush=True)
        answer = json.dumps({"id": "ses_1"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *words):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


@contextmanager
def seated(place: Path, program: str) -> Iterator[tuple[Turn, subprocess.Popen[str]]]:
    """A turn whose prompt is `begin`, and the seat of an opencode that is `program`."""
    (place / "prompt").write_text("begin")
    told = turn(prompt=str(place / "prompt"), state=str(place))
    settings = {"argv": [sys.executable, "-c", program], "conversation": "", "title": "t"}
    sit = argv_of(told, "opencode", "run", settings)
    with subprocess.Popen(sit, stdout=subprocess.PIPE, text=True, start_new_session=True) as agent_terminal:
        feed = place / "opencode" / "feed.jsonl"
        while not feed.exists():
            time.sleep(0.05)
        try:
            yield told, agent_terminal
        finally:
            os.killpg(agent_terminal.pid, signal.SIGTERM)


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[tuple[Turn, subprocess.Popen[str]]]:
    with seated(tmp_path, _SLOW) as both:
        yield both


def test_a_slow_opencode_gets_a_prompt_once(slow: tuple[Turn, subprocess.Popen[str]]) -> None:
    """A killed daemon leaves its delivery running; the next daemon delivers the prompt again."""
    told, agent_terminal = slow
    say = adapter("opencode").send_prompt(told).words()
    both = [subprocess.Popen(say) for _ in range(2)]
    assert [one.wait(60) for one in both] == [0, 0]
    Path(told.prompt).write_text("go on")
    assert subprocess.run(say, check=False, timeout=60).returncode == 0
    assert agent_terminal.stdout is not None
    said = [json.loads(agent_terminal.stdout.readline().partition(" ")[2]) for _ in range(2)]
    assert [one["parts"][0]["text"] for one in said] == ["begin", "go on"]


def test_the_event_stream_of_opencode_is_reopened(slow: tuple[Turn, subprocess.Popen[str]]) -> None:
    feed = Path(slow[0].state) / "opencode" / "feed.jsonl"
    until = time.monotonic() + 60
    while b"session.idle" not in feed.read_bytes():
        assert time.monotonic() < until, feed.read_bytes()
        time.sleep(0.05)


# An opencode that takes a prompt, tells of it, and never answers one that is called `begin`; it takes none that is
# called `lost` before it is asked twice.
_MUTE = """
import json, queue, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

events = queue.Queue()
lost = []

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path != "/event":
            return self.answer({})
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while True:
            event = b"data: " + json.dumps(events.get()).encode() + b"\\n"
            self.wfile.write(b"%x\\r\\n%b\\r\\n" % (len(event), event))

    def do_POST(self):
        data = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "prompt" in self.path:
            self.take(data["parts"][0]["text"])
        self.answer({"id": "ses_1"})

    def answer(self, said):
        answer = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def take(self, text):
        print(text, flush=True)
        if text == "lost" and not lost:
            lost.append(text)
            time.sleep(1000)
        part = {"type": "text", "text": text, "messageID": "m"}
        events.put({"type": "message.part.updated", "properties": {"sessionID": "ses_1", "part": part}})
        if text == "begin":
            time.sleep(1000)

    def log_message(self, *words):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
"""


def test_a_prompt_is_delivered_once_after_its_sender_died(tmp_path: Path) -> None:
    """A prompt that the program accepted is not sent again; one that it did not accept is."""
    with seated(tmp_path, _MUTE) as (told, agent_terminal):
        say = adapter("opencode").send_prompt(told).words()
        assert agent_terminal.stdout is not None
        for text in ("begin", "lost"):
            Path(told.prompt).write_text(text)
            with subprocess.Popen(say) as cut_off:
                assert agent_terminal.stdout.readline() == f"{text}\n"
                cut_off.kill()
            assert subprocess.run(say, check=False, timeout=60).returncode == 0
        Path(told.prompt).write_text("go on")
        assert subprocess.run(say, check=False, timeout=60).returncode == 0
        assert [agent_terminal.stdout.readline() for _ in range(2)] == ["lost\n", "go on\n"]


def test_a_repeated_delivery_searches_the_feed_from_its_first_attempt(tmp_path: Path) -> None:
    feed = Feed(str(tmp_path / "feed"))
    feed.prepare()
    feed.add({"n": 1})
    with pytest.raises(KeyboardInterrupt), delivery(tmp_path, feed, "turn-1", "go") as first:
        assert first is not None
        assert (first.retried, list(first.feed_tail.lines())) == (False, [])
        feed.add({"n": 2})
        raise KeyboardInterrupt
    with delivery(tmp_path, feed, "turn-1", "go") as second:
        assert second is not None
        assert (second.retried, list(second.feed_tail.lines())) == (True, [{"n": 2}])
    with delivery(tmp_path, feed, "turn-1", "go") as third:
        assert third is None
    with delivery(tmp_path, feed, "turn-2", "go") as other:
        assert other is not None
        assert (other.retried, list(other.feed_tail.lines())) == (False, [])
