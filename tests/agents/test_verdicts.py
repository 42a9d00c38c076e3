"""The verdict of a turn, for cases that no transcript contains. Exit code 0 is not success."""

from __future__ import annotations

import json

import pytest

from hiveyard import agents
from hiveyard.core.events import AgentEnded, AgentError, AgentText, AgentUsage
from hiveyard.core.ports import Verdict


def verdict(agent: str, *lines: object, exit_code: int | None = 0, stderr: str = "") -> Verdict:
    parser = agents.by_name(agent).parser()
    for line in lines:
        parser.feed(json.dumps(line).encode())
    return parser.verdict(exit_code, stderr)


def result(**rest: object) -> dict[str, object]:
    return {"type": "result", "subtype": "success", "is_error": False, "result": "Done", "session_id": "s1", **rest}


def test_success_with_is_error_is_a_failure_of_claude() -> None:
    found = verdict("claude", result(is_error=True, api_error_status=529, result="API Error: Overloaded"))
    assert (found.ok, found.code) == (False, "door.upstream_failed")


def test_claude_was_denied_one_tool_and_used_another() -> None:
    used = {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t", "content": "ok"}]}}
    denied = [{"tool_name": "Write", "tool_use_id": "u"}]
    assert verdict("claude", used, result(permission_denials=denied)).ok
    assert not verdict("claude", result(permission_denials=denied)).ok


@pytest.mark.parametrize(
    ("subtype", "reason"),
    [
        ("error_max_turns", "claude reached its limit of turns"),
        ("error_max_budget_usd", "claude reached its own budget"),
        ("error_during_execution", "it broke"),
        ("something new", "it broke"),
    ],
)
def test_claude_ends_with_another_subtype_than_success(subtype: str, reason: str) -> None:
    found = verdict("claude", result(subtype=subtype, result="", errors=["it broke"]))
    assert (found.ok, found.code, found.reason) == (False, "agent.failed", reason)


def test_claude_gives_no_result() -> None:
    started = {"type": "system", "subtype": "init", "session_id": "s1"}
    found = verdict("claude", started, exit_code=137)
    assert found == Verdict(False, "agent.failed", "claude was killed by SIGKILL", "s1")
    assert not verdict("claude", started, exit_code=None).ok
    assert verdict("claude", exit_code=0).code == "agent.nothing_done"
    assert verdict("claude", exit_code=127, stderr="sh: claude: not found").reason == (
        "claude could not be started in the guest: sh: claude: not found"
    )


def test_success_with_a_failing_exit_code_is_a_failure_of_claude() -> None:
    assert verdict("claude", result(), exit_code=1).code == "agent.failed"


def test_claude_retried_a_refused_key_until_it_was_killed() -> None:
    retry = {"type": "system", "subtype": "api_retry", "attempt": 1, "max_retries": 6, "error_status": 401}
    assert verdict("claude", retry, exit_code=143).code == "credentials.key_refused"


def test_usage_of_claude_is_counted_since_the_last_result() -> None:
    parser = agents.by_name("claude").parser()
    part = {"inputTokens": 10, "outputTokens": 5, "cacheReadInputTokens": 3, "cacheCreationInputTokens": 2}
    line = result(
        total_cost_usd=9.0,
        modelUsage={"m": {"inputTokens": 900, "costUSD": 9.0}},
        model_usage_since_last_result={"m": {**part, "costUSD": 0.25}, "small": {**part, "costUSD": 0.25}},
    )
    usages = [e.usage for _ in range(2) for e in parser.feed(json.dumps(line).encode()) if isinstance(e, AgentUsage)]
    assert [(u.input_tokens, u.output_tokens, u.cost_usd) for u in usages] == [(20, 10, 0.5), (40, 20, 1.0)]
    assert (usages[0].cache_read_tokens, usages[0].cache_write_tokens) == (6, 4)


def test_an_older_claude_reports_no_cost_of_this_turn() -> None:
    parser = agents.by_name("claude").parser()
    line = result(total_cost_usd=9.0, usage={"input_tokens": 7, "output_tokens": 1})
    usage = next(e.usage for e in parser.feed(json.dumps(line).encode()) if isinstance(e, AgentUsage))
    assert (usage.input_tokens, usage.cost_usd) == (7, None)


def test_a_synthetic_message_of_claude_is_an_error() -> None:
    parser = agents.by_name("claude").parser()
    said = {"model": "<synthetic>", "content": [{"type": "text", "text": "Credit balance is too low"}]}
    events = parser.feed(json.dumps({"type": "assistant", "message": said}).encode())
    assert [type(event) for event in events] == [AgentError]
    assert parser.verdict(1, "").reason.startswith("Credit balance is too low")


def test_the_last_text_of_claude_is_kept() -> None:
    events = agents.by_name("claude").parser().feed(json.dumps(result(terminal_reason="completed")).encode())
    assert AgentEnded(is_error=False, text="Done", reason="completed") in events


def step(reason: str) -> dict[str, object]:
    return {
        "type": "step_finish",
        "sessionID": "ses_1",
        "part": {"reason": reason, "tokens": {"input": 1}, "cost": 0.1},
    }


TEXT = {"type": "text", "sessionID": "ses_1", "part": {"text": "hello"}}


@pytest.mark.parametrize(
    ("reason", "code"),
    [("stop", ""), ("length", "agent.failed"), ("tool-calls", "agent.failed"), ("unknown", "agent.failed")],
)
def test_opencode_is_done_when_its_last_step_says_stop(reason: str, code: str) -> None:
    assert verdict("opencode", TEXT, step(reason)).code == code


def test_opencode_ends_in_the_middle_of_a_step() -> None:
    assert verdict("opencode", TEXT).code == "agent.failed"
    assert verdict("opencode").code == "agent.nothing_done"


def test_opencode_exits_with_an_error_and_no_output() -> None:
    found = verdict("opencode", TEXT, step("stop"), exit_code=1, stderr="Error: boom")
    assert found == Verdict(False, "agent.failed", "opencode ended with exit code 1: Error: boom", "ses_1")
    assert not verdict("opencode", TEXT, step("stop"), exit_code=None).ok


def failed(name: str = "ContextOverflowError", message: str = "prompt is too long") -> dict[str, object]:
    return {"type": "error", "sessionID": "ses_1", "error": {"name": name, "data": {"message": message}}}


SUMMED = [failed(), {**TEXT, "part": {"text": "a summary"}}, step("stop")]


def test_opencode_continues_after_a_summary_and_exits_with_1() -> None:
    assert verdict("opencode", *SUMMED, TEXT, step("stop"), exit_code=1).ok
    assert verdict("opencode", *SUMMED, step("tool-calls"), *SUMMED, TEXT, step("stop"), exit_code=1).ok
    assert verdict("opencode", failed("UnknownError", "a hook broke"), TEXT, step("stop"), exit_code=1).ok


@pytest.mark.parametrize(
    ("lines", "exit_code", "reason"),
    [
        ([*SUMMED], 1, "prompt is too long"),
        ([*SUMMED], 0, "prompt is too long"),
        ([TEXT, step("stop"), failed()], 1, "prompt is too long"),
        ([*SUMMED, TEXT, step("stop"), failed("APIError", "gone")], 1, "gone"),
        ([*SUMMED, failed(message="too large to compact")], 1, "too large to compact"),
        (
            [*SUMMED, TEXT, step("tool-calls")],
            1,
            "opencode stopped in the middle of the turn: its last step ended with 'tool-calls'",
        ),
        ([*SUMMED, TEXT, step("length")], 1, "the model's reply was cut at its limit of output tokens"),
        ([*SUMMED, TEXT, step("stop")], 2, "opencode ended with exit code 2"),
        ([*SUMMED, step("stop")], 1, "opencode used no tool and wrote no text"),
    ],
)
def test_opencode_continues_after_a_summary_and_fails(lines: list[object], exit_code: int, reason: str) -> None:
    found = verdict("opencode", *lines, exit_code=exit_code)
    assert (found.ok, found.reason) == (False, reason)


def test_a_summary_of_opencode_is_neither_an_end_nor_an_answer() -> None:
    parser = agents.by_name("opencode").parser()
    on = {**TEXT, "part": {"text": "Continue if you have next steps", "synthetic": True}}
    lines = [*SUMMED, on, TEXT, step("stop")]
    events = [event for line in lines for event in parser.feed(json.dumps(line).encode())]
    assert [event.text for event in events if isinstance(event, AgentText)] == ["hello"]
    ends = [event for event in events if isinstance(event, AgentEnded)]
    assert ends == [AgentEnded(is_error=False, text="hello", reason="stop")]


def test_an_unknown_price_of_opencode_is_not_zero() -> None:
    parser = agents.by_name("opencode").parser()
    line = step("stop") | {"part": {"reason": "stop", "tokens": {"input": 5, "output": 2, "reasoning": 3}, "cost": 0}}
    usage = next(e.usage for e in parser.feed(json.dumps(line).encode()) if isinstance(e, AgentUsage))
    assert (usage.input_tokens, usage.output_tokens, usage.cost_usd) == (5, 5, None)


DONE = {"type": "turn.completed", "usage": {"input_tokens": 900, "cached_input_tokens": 500, "output_tokens": 60}}
SAID = {"type": "item.completed", "item": {"id": "item_0", "type": "agent_message", "text": "hello"}}


def test_codex_is_done_when_it_says_so_and_its_exit_code_agrees() -> None:
    assert verdict("codex", SAID, DONE).ok
    assert verdict("codex", SAID, DONE, exit_code=1).code == "agent.failed"
    assert verdict("codex", DONE).code == "agent.nothing_done"
    assert verdict("codex", SAID).code == "agent.failed"
    assert not verdict("codex", SAID, DONE, exit_code=None).ok


def test_codex_may_recover_from_an_error() -> None:
    again = {"type": "error", "message": "Reconnecting... 1/7 (unexpected status 401 Unauthorized: no)"}
    assert verdict("codex", again, SAID, DONE).ok
    assert verdict("codex", again, exit_code=143).code == "credentials.key_refused"


def test_the_doors_error_code_is_found_in_an_error_of_codex() -> None:
    said = json.dumps({"error": {"message": "Hiveyard: the budget of $1.00 is spent [door.budget_spent]"}})
    found = verdict("codex", {"type": "turn.failed", "error": {"message": said}}, exit_code=1)
    assert (found.code, found.reason) == (
        "door.budget_spent",
        "Hiveyard: the budget of $1.00 is spent [door.budget_spent]",
    )


def test_the_reason_of_a_door_error_is_the_doors_message() -> None:
    ours = "Hiveyard: there is no key for openai [credentials.key_missing]"
    codex = {"message": f"unexpected status 401 Unauthorized: {ours}, url: http://127.0.0.1:8377/openai/v1/responses"}
    goose = message({"type": "error", "message": f"Authentication failed. Status: 401. Response: {ours}."}, asked=False)
    found = [verdict("codex", {"type": "turn.failed", "error": codex}, exit_code=1), verdict("goose", goose, COMPLETE)]
    assert [(one.code, one.reason) for one in found] == [("credentials.key_missing", ours)] * 2


def test_usage_of_codex_is_counted_for_this_turn() -> None:
    parser = agents.by_name("codex").parser()
    total = {"input_tokens": 600, "cached_input_tokens": 400, "output_tokens": 50}
    before = {"type": "event_msg", "payload": {"type": "token_count", "info": {"total_token_usage": total}}}
    events = [event for line in (before, DONE) for event in parser.feed(json.dumps(line).encode())]
    usage = next(event.usage for event in events if isinstance(event, AgentUsage))
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens) == (200, 100, 10)
    assert usage.cost_usd is None


def message(*content: object, role: str = "assistant", asked: bool = True) -> dict[str, object]:
    metadata = {"inference": {"provider": "anthropic"}} if asked else {}
    return {"type": "message", "message": {"id": "m", "role": role, "content": content, "metadata": metadata}}


WORDS = message({"type": "text", "text": "hello"})
COMPLETE = {"type": "complete", "input_tokens": 900, "cache_read_input_tokens": 500, "output_tokens": 60}


def test_goose_succeeds_when_the_last_message_is_a_text() -> None:
    called = message({"type": "toolRequest", "id": "c", "toolCall": {"value": {"name": "shell", "arguments": {}}}})
    answer = message({"type": "toolResponse", "id": "c", "toolResult": {"status": "success"}}, role="user", asked=False)
    assert verdict("goose", called, answer, WORDS, COMPLETE).ok
    assert verdict("goose", WORDS, called, answer, COMPLETE).code == "agent.failed"
    assert verdict("goose", WORDS).code == "agent.failed"
    assert verdict("goose", COMPLETE).code == "agent.nothing_done"
    assert verdict("goose", WORDS, COMPLETE, exit_code=137).reason == "goose was killed by SIGKILL"


def test_an_error_message_of_goose_is_a_failure_despite_exit_code_0() -> None:
    failed = message(
        {"type": "text", "text": "Ran into this error: Server error (503).\n\nPlease retry if you"}, asked=False
    )
    found = verdict("goose", WORDS, failed, COMPLETE)
    assert (found.code, found.reason) == ("door.upstream_failed", "Server error (503).")
    assert verdict("goose", failed, WORDS, COMPLETE).ok, "it got over it"


def test_pieces_of_a_text_of_goose_give_one_event() -> None:
    parser = agents.by_name("goose").parser()
    lines = [message({"type": "text", "text": word}) for word in ("one ", "two ", "three")]
    events = [event for line in (*lines, COMPLETE) for event in parser.feed(json.dumps(line).encode())]
    assert [event.text for event in events if isinstance(event, AgentText)] == ["one two three"]


def test_usage_of_goose_is_counted_for_this_turn() -> None:
    parser = agents.by_name("goose").parser()
    used = {"input_tokens": 600, "cache_read_input_tokens": 400, "output_tokens": 50}
    former = [
        {"name": "another", "accumulated_usage": COMPLETE},
        {"name": "n", "accumulated_usage": used, "accumulated_cost": 0.25},
    ]
    session = {"type": "session", "name": "n", "workdir": "/session/repo", "former": former}
    lines = (session, {**COMPLETE, "cost_usd": 0.75})
    events = [event for line in lines for event in parser.feed(json.dumps(line).encode())]
    usage = next(event.usage for event in events if isinstance(event, AgentUsage))
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens, usage.cost_usd) == (200, 100, 10, 0.5)


def test_a_command_with_output_succeeds_by_its_exit_code() -> None:
    parser = agents.by_name("command").parser()
    assert parser.verdict(0, "").code == "agent.nothing_done"
    parser.feed(b"working")
    assert parser.verdict(0, "").ok
    assert parser.verdict(3, "so\nit failed\n").reason == "the command ended with exit code 3: it failed"
    assert parser.verdict(None, "").code == "agent.failed"
