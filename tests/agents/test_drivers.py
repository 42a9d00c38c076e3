"""Drivers: any output is understood or kept, and a new driver with the same output gives the same result."""

from __future__ import annotations

import json
import re

import msgspec
import pytest
from acp.schema import ToolCallStart
from hypothesis import given
from hypothesis import strategies as st

from hiveyard import agents
from hiveyard.agents.acp.updates import Updates
from hiveyard.agents.shared.permission import PermissionRequests
from hiveyard.agents.shared.wording import changed
from hiveyard.core.drivers import Answer, Driver, HasDriver, Line, Step
from hiveyard.core.errors import BadInput
from hiveyard.core.events import (
    AgentAsked,
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentPrompted,
    AgentStarted,
    AgentText,
    AgentToolReturned,
    Event,
)
from tests.agents.test_hostile_output import JSONS
from tests.agents.test_processes import turn

NAMES = ("claude", "opencode", "codex", "goose")
_METHODS = st.sampled_from(
    re.findall(
        r"\S+",
        "session/update session/request_permission fs/write_text_file turn/started turn/completed item/started error"
        " item/completed item/commandExecution/requestApproval thread/tokenUsage/updated control_request",
    )
)
_IDS = st.sampled_from(["initialize", "session", "thread", "turn-a", "set-mode", 0, 2**70, None, "\ud800"])
_KINDS = st.sampled_from(
    re.findall(
        r"\S+",
        "agent_message_chunk tool_call tool_call_update usage_update plan agentMessage commandExecution fileChange",
    )
)
_MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["system", "assistant", "user", "result", "control_request", "control_response"]),
        "subtype": st.sampled_from(["init", "success"]),
        "request_id": st.text(max_size=3),
        "request": st.fixed_dictionaries({"subtype": st.just("can_use_tool")}, optional={"input": JSONS}),
        "method": _METHODS,
        "id": _IDS,
        "params": JSONS
        | st.fixed_dictionaries(
            {
                "sessionId": st.just("s"),
                "update": st.fixed_dictionaries({"sessionUpdate": _KINDS}, optional={"x": JSONS}),
            }
        )
        | st.fixed_dictionaries({"item": st.fixed_dictionaries({"type": _KINDS}, optional={"changes": JSONS})}),
        "result": JSONS,
        "error": JSONS,
    },
)


def driver(name: str) -> Driver:
    agent = agents.by_name(name)
    assert isinstance(agent, HasDriver)
    return agent.driver(turn(ask=True))


def _stored(events: object) -> None:
    """They can be, and are bounded."""
    assert isinstance(events, list | tuple)
    for event in events:
        stored = msgspec.json.encode(Event(seq=1, at=0.0, session="s", body=event))
        assert msgspec.json.decode(stored, type=Event).body == event
        assert len(stored) < 1 << 20


def _hear(one: Driver, lines: list[bytes]) -> list[Step]:
    return [one.start(), *(one.feed(line) for line in lines), one.exited(1, "gone")]


@pytest.mark.parametrize("name", NAMES)
@given(lines=st.lists(st.binary(max_size=200) | _MESSAGES.map(lambda said: json.dumps(said).encode()), max_size=6))
def test_no_output_of_a_program_raises_an_error(name: str, lines: list[bytes]) -> None:
    steps = _hear(driver(name), lines)
    for step in steps:
        _stored(list(step.events))
        for line in step.lines:
            assert line.data.endswith(b"\n")
            assert line.data.count(b"\n") == 1
            json.loads(line.data)
    assert steps == _hear(driver(name), lines), "the same output means the same"


# What each program says until it asks for leave, as it was recorded, with all but the needed taken out.
_ACP = [
    b'{"jsonrpc":"2.0","id":"initialize","result":{"protocolVersion":1,"agentInfo":{"name":"x","version":"1.2"}}}',
    b'{"jsonrpc":"2.0","id":"session","result":{"sessionId":"ses_1"}}',
    b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"ses_1","update":{"sessionUpdate":'
    b'"agent_message_chunk","content":{"type":"text","text":"I "}}}}',
    b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"ses_1","update":{"sessionUpdate":'
    b'"agent_message_chunk","content":{"type":"text","text":"run."}}}}',
    b'{"jsonrpc":"2.0","id":7,"method":"session/request_permission","params":{"sessionId":"ses_1","toolCall":'
    b'{"toolCallId":"c","title":"ls","kind":"execute","rawInput":{"command":"ls"}},"options":['
    b'{"optionId":"forever","kind":"allow_always","name":"a"},{"optionId":"once","kind":"allow_once","name":"b"},'
    b'{"optionId":"no","kind":"reject_once","name":"c"}]}}',
]
SAID = {
    "claude": [
        b'{"type":"system","subtype":"init","session_id":"1f-a","cwd":"/w","model":"m","claude_code_version":"2"}',
        b'{"type":"assistant","message":{"id":"m1","content":[{"type":"text","text":"I run."}]}}',
        b'{"type":"control_request","request_id":"7","request":{"subtype":"can_use_tool","tool_name":"Bash",'
        b'"input":{"command":"ls"}}}',
    ],
    "opencode": _ACP,
    "goose": _ACP,
    "codex": [
        b'{"id":"initialize","result":{"userAgent":"hiveyard/0.1 (x)"}}',
        b'{"id":"thread","result":{"thread":{"id":"th-1"},"model":"m"}}',
        b'{"method":"turn/started","params":{"turn":{"id":"t1"}}}',
        b'{"method":"item/completed","params":{"turnId":"t1","item":{"type":"agentMessage","id":"i","text":"I run."}}}',
        b'{"id":7,"method":"item/commandExecution/requestApproval","params":{"turnId":"t1","command":"ls"}}',
    ],
}
ALLOWED = {
    "claude": {"behavior": "allow", "updatedInput": {"command": "ls"}},
    "opencode": {"outcome": {"outcome": "selected", "optionId": "once"}},
    "goose": {"outcome": {"outcome": "selected", "optionId": "once"}},
    "codex": {"decision": "accept"},
}


def _events(steps: list[Step], kind: type[AgentEvent]) -> list[AgentEvent]:
    return [event for step in steps for event in step.events if isinstance(event, kind)]


def _answer(line: Line) -> object:
    told = json.loads(line.data)
    return told["result"] if "result" in told else told["response"]["response"]


@pytest.mark.parametrize("name", NAMES)
def test_only_the_first_answer_to_a_request_counts(name: str) -> None:
    one = driver(name)
    steps = [one.start(), *(one.feed(line) for line in SAID[name])]
    (started,) = _events(steps, AgentStarted)
    assert isinstance(started, AgentStarted)
    assert one.conversation == started.conversation != ""
    assert [event.text for event in _events(steps, AgentText) if isinstance(event, AgentText)] == ["I run."]
    (asked,) = _events(steps, AgentAsked)
    assert isinstance(asked, AgentAsked)
    assert json.loads(asked.input)["command"] == "ls"
    assert not one.ready, "a turn is at work, whoever began it"
    (line,) = one.answer(asked.request, Answer(allow=True)).lines
    assert _answer(line) == ALLOWED[name]
    with pytest.raises(BadInput, match="is not waiting for an answer"):
        one.answer(asked.request, Answer(allow=False))
    (ended,) = one.exited(None, "").events
    assert isinstance(ended, AgentEnded)
    assert ended.is_error


@pytest.mark.parametrize("name", NAMES)
def test_other_arguments_are_accepted_only_if_supported(name: str) -> None:
    one = driver(name)
    for said in SAID[name]:
        one.feed(said)
    if name == "claude":
        (line,) = one.answer("7", Answer(allow=True, input={"command": "true"})).lines
        assert _answer(line) == {"behavior": "allow", "updatedInput": {"command": "true"}}
        return
    with pytest.raises(BadInput, match="other arguments"):
        one.answer("7", Answer(allow=True, input={"command": "true"}))
    (line,) = one.answer("7", Answer(allow=False)).lines
    assert line.key == "reply-7"


@pytest.mark.parametrize("name", ["opencode", "goose", "codex"])
def test_a_program_that_starts_no_conversation_reports_why(name: str) -> None:
    one = driver(name)
    one.start()
    assert not one.ready
    step = one.feed(b'{"id":"initialize","error":{"code":-1,"message":"no such thing"}}')
    assert "no such thing" in str(step.events)
    assert one.ready, "whoever waits is told"
    with pytest.raises(Exception, match="no such thing"):
        one.prompt("k", "hello")


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_one_line_with_any_content(name: str) -> None:
    one = driver(name)
    for said in SAID[name][:2]:
        one.feed(said)
    hard = "a\nb\r\n\x00\u2028 \"quoted\" 'too' \\ {} 🐝"
    (line,) = one.prompt("k", hard)
    assert line.data.count(b"\n") == 1
    assert hard in _texts(json.loads(line.data))
    (prompted,) = one.prompt_sent(hard)
    assert isinstance(prompted, AgentPrompted)
    assert prompted.text == hard
    assert not one.ready


def _texts(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for one in inner for text in _texts(one)]


@pytest.mark.parametrize("name", NAMES)
def test_all_long_texts_are_clipped(name: str) -> None:
    """Ids, paths and versions too."""
    words = "x" * (1 << 20)
    call = {"toolCallId": words, "title": words, "kind": "edit", "status": "completed", "rawInput": {"path": words}}
    edits = [{"type": "diff", "path": words, "newText": words}]
    work = {"type": "fileChange", "id": words, "changes": [{"path": words, "kind": "add", "diff": words}]}
    one = driver(name)
    steps = [
        one.feed(json.dumps(said).encode())
        for said in (
            {"type": "system", "subtype": "init", "session_id": words, "model": words},
            {"type": "control_request", "request_id": words, "request": {"subtype": "can_use_tool"}},
            {"id": "initialize", "result": {"agentInfo": {"version": words}, "userAgent": f"x/{words}"}},
            {"id": "session", "result": {"sessionId": words}},
            {"id": "thread", "result": {"thread": {"id": words}, "model": words}},
            {"id": words, "method": "item/commandExecution/requestApproval", "params": {"command": words}},
            {"id": words, "method": "session/request_permission", "params": {"sessionId": "s", "options": []}},
            {"method": "item/completed", "params": {"turnId": words, "item": {**work, "status": "completed"}}},
            {
                "method": "session/update",
                "params": {"sessionId": "s", "update": {"sessionUpdate": "tool_call", **call, "content": edits}},
            },
        )
    ]
    for step in steps:
        _stored(list(step.events))
        assert not step.lines or max(len(line.key) for line in step.lines) < 1000
    assert any("more characters" in repr(step.events) for step in steps)
    assert _events(steps, AgentAsked) == []


def test_the_oldest_unanswered_requests_are_dropped() -> None:
    requests = PermissionRequests()
    for number in range(20):
        requests.add(str(number), "Write", {"content": "x" * (8 << 20)}, "write")
    with pytest.raises(BadInput, match="is not waiting"):
        requests.settle("0")
    assert requests.settle("19")["content"]
    assert len(requests.clear()) < 8


def test_the_oldest_unfinished_calls_are_dropped() -> None:
    updates = Updates("/w")
    for number in range(20):
        start = ToolCallStart(
            session_update="tool_call", tool_call_id=str(number), title="t", raw_input={"content": "x" * (8 << 20)}
        )
        list(updates.feed(start))
    assert [updates.call(str(number)).input != {} for number in range(20)] == [*[False] * 13, *[True] * 7]
    updates.start_turn()
    list(updates.feed(start))
    assert updates.call("19").input


def test_no_diff_is_computed_for_a_large_changed_file() -> None:
    lines = "".join(f"{number}\n" for number in range(6000))
    assert changed("a", lines, f"{lines}more\n") == ""
    assert changed("a", None, lines).startswith("--- /dev/null\n+++ b/a\n@@ -0,0 +1,6000 @@\n+0\n")
    assert changed("a", "0\n", "1\n").endswith("-0\n+1\n")


def test_a_rejected_steer_of_codex_is_reported() -> None:
    one = driver("codex")
    for said in SAID["codex"][:3]:
        one.feed(said)
    ((key, _),) = one.steer("k", "and this").lines
    refusal = {"id": key, "error": {"code": -32600, "message": "no active turn"}}
    (event,) = one.feed(json.dumps(refusal).encode()).events
    assert isinstance(event, AgentError)
    assert "no active turn" in event.message


@pytest.mark.parametrize("name", ["opencode", "goose"])
def test_late_updates_of_an_ended_turn_start_no_new_turn(name: str) -> None:
    def update(**told: object) -> bytes:
        params = {"sessionId": "ses_1", "update": told}
        return json.dumps({"jsonrpc": "2.0", "method": "session/update", "params": params}).encode()

    words = {"sessionUpdate": "agent_message_chunk", "messageId": "m1", "content": {"type": "text", "text": "Yes."}}
    call = {"sessionUpdate": "tool_call_update", "toolCallId": "c1", "status": "completed"}
    one = driver(name)
    for said in (*SAID[name][:2], update(**words), update(**call)):
        one.feed(said)
    assert not one.ready
    one.feed(b'{"jsonrpc":"2.0","id":"turn-k","result":{"stopReason":"end_turn"}}')
    for said in (update(**words), update(**call)):
        one.feed(said)
        assert one.ready
    one.feed(update(**{**words, "messageId": "m2"}))
    assert not one.ready


def test_an_invalid_model_leaves_the_agent_ready() -> None:
    one = driver("opencode")
    option = {"id": "model", "name": "Model", "type": "select", "currentValue": "a/b", "options": []}
    opened = {"sessionId": "ses_1", "configOptions": [option]}
    one.feed(SAID["opencode"][0])
    one.feed(json.dumps({"jsonrpc": "2.0", "id": "session", "result": opened}).encode())
    one.feed(b'{"jsonrpc":"2.0","id":"set-model","result":{}}')
    assert one.ready
    with pytest.raises(BadInput, match="not a valid model name"):
        one.choose("k", "--yolo")
    assert one.ready
    assert one.choose("k", "a/c").lines
    assert not one.ready


@pytest.mark.parametrize("name", ["opencode", "goose"])
def test_a_request_after_an_interrupt_is_cancelled(name: str) -> None:
    """The client that cancels answers all open requests, even those that were on the way."""
    for ask in (True, False):
        one = agents.by_name(name).driver(turn(ask=ask))  # type: ignore[attr-defined]
        *before, asking = SAID[name]
        for said in before:
            one.feed(said)
        one.prompt_sent("go")
        one.interrupt("i")
        step = one.feed(asking)
        assert _events([step], AgentAsked) == []
        assert json.loads(step.lines[0].data)["result"] == {"outcome": {"outcome": "cancelled"}}


def _codex_at_work(*, ask: bool = True) -> Driver:
    one: Driver = agents.by_name("codex").driver(turn(ask=ask))  # type: ignore[attr-defined]
    for said in SAID["codex"][:4]:
        one.feed(said)
    return one


def _told_by_codex(method: str, id: int | None = None, **params: object) -> bytes:
    return json.dumps({"method": method, "params": params} | ({} if id is None else {"id": id})).encode()


_RUN = {"type": "commandExecution", "id": "c", "command": "npm run dev", "status": "completed", "exitCode": 0}


def test_a_sub_agent_of_codex_ends_no_turn_and_drops_no_request() -> None:
    """A sub-agent's turn ends before the turn that began it."""
    one = _codex_at_work()
    before = one.interrupt("i").lines
    for method in ("turn/started", "turn/completed"):
        turned = {"id": "t9", "status": "completed"}
        assert one.feed(_told_by_codex(method, threadId="th-2", turn=turned)) == Step()
    assert one.feed(_told_by_codex("item/completed", threadId="th-2", turnId="t9", item=_RUN)) == Step()
    assert not one.ready
    assert one.interrupt("i").lines == before, "the turn is still called what it was called"
    request = "item/commandExecution/requestApproval"
    (asked,) = one.feed(_told_by_codex(request, 8, threadId="th-2", turnId="t9", command="ls")).events
    (over,) = one.feed(
        _told_by_codex("turn/completed", threadId="th-1", turn={"id": "t1", "status": "completed"})
    ).events
    assert isinstance(asked, AgentAsked)
    assert isinstance(over, AgentEnded)
    assert _answer(one.answer(asked.request, Answer(allow=True)).lines[0]) == {"decision": "accept"}
    one.feed(_told_by_codex(request, 9, threadId="th-2", turnId="t9", command="ls"))
    one.feed(_told_by_codex("turn/completed", threadId="th-2", turn={"id": "t9", "status": "completed"}))
    with pytest.raises(BadInput):
        one.answer("9", Answer(allow=True))
    assert one.ready


def test_a_background_process_of_codex_starts_no_turn_when_it_ends() -> None:
    one = _codex_at_work()
    over = _told_by_codex("turn/completed", turn={"id": "t1", "status": "completed"})
    one.feed(over)
    late = _told_by_codex("item/completed", threadId="th-1", turnId="t1", item=_RUN)
    assert _events([one.feed(late)], AgentToolReturned), "it is told all the same"
    assert one.ready
    one.prompt_sent("go on")
    one.feed(_told_by_codex("turn/started", turn={"id": "t2"}))
    one.feed(late)
    assert one.feed(over) == Step()
    (line,) = one.interrupt("i").lines
    assert json.loads(line.data)["params"]["turnId"] == "t2"


def test_codex_without_permission_requests_never_waits() -> None:
    one = _codex_at_work(ask=False)
    request, elicit = "item/commandExecution/requestApproval", "mcpServer/elicitation/request"
    accepted: dict[str, object] = {"action": "accept", "content": {}}
    form = {"requestedSchema": {"required": ["name"]}}
    asked: list[tuple[str, dict[str, object], dict[str, object]]] = [
        (request, {"command": "ls"}, {"decision": "accept"}),
        (elicit, {"message": "may it?"}, accepted),
        (elicit, {"message": "your name?", **form}, {"action": "decline"}),
        (elicit, {"message": "see there", "mode": "url"}, {"action": "decline"}),
    ]
    for method, params, answer in asked:
        events, (line,) = one.feed(_told_by_codex(method, 7, threadId="th-1", turnId="t1", **params))
        assert not events
        assert _answer(line) == answer


def test_claude_without_permission_requests_never_waits() -> None:
    """Some tools ask in any mode. A question to the user is denied."""
    one: Driver = agents.by_name("claude").driver(turn())  # type: ignore[attr-defined]
    one.feed(SAID["claude"][0])
    asking = '{"type":"control_request","request_id":"7","request":{"subtype":"can_use_tool","tool_name":"%s"}}'
    answers = []
    for tool in ("ExitPlanMode", "AskUserQuestion"):
        events, (line,) = one.feed((asking % tool).encode())
        assert not events
        answers.append(_answer(line))
    allowed, denied = answers
    assert allowed == {"behavior": "allow", "updatedInput": {}}
    assert isinstance(denied, dict)
    assert denied["behavior"] == "deny"
