"""A spent budget refuses further requests, and is recorded once."""

# ruff: noqa: SIM117 - a server, a door and a guest on one line read badly
from __future__ import annotations

import json
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from hiveyard.core.errors import BudgetSpent
from hiveyard.core.events import BudgetExhausted, ModelCalled, Notice
from hiveyard.core.usage import Usage
from hiveyard.door.budget import Budget

from . import bodies
from .house import MemoryJournal, door, guest, message
from .upstream import streamed, upstream, whole

pytestmark = pytest.mark.anyio

EACH = 0.0154  # dollars, about, for one of these answers


async def test_a_request_over_the_budget_is_refused_in_a_form_that_stops_an_agent(tmp_path: Path) -> None:
    journal, calls = MemoryJournal(), []
    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up:
        async with door(up.url, journal, tmp_path, budget_usd=2.5 * EACH, on_budget=lambda: calls.append(1)) as opened:
            async with guest(opened) as client:
                answers = [await client.post("/anthropic/v1/messages", json=message()) for _ in range(5)]
                other = await client.post("/openai/v1/chat/completions", json={"model": "gpt-5", "messages": []})
    assert [answer.status_code for answer in answers] == [200, 200, 200, 400, 400]
    assert len(up.requests) == 3
    refused = answers[-1].json()
    assert refused["type"] == "error" and "budget of $0.04" in refused["error"]["message"]
    assert answers[-1].headers["x-should-retry"] == "false"
    assert other.status_code == 400 and other.json()["error"]["code"] == "door.budget_spent"
    [exhausted] = journal.of(BudgetExhausted)
    assert exhausted.spent_usd == pytest.approx(sum(call.usage.cost_usd or 0 for call in journal.of(ModelCalled)))
    assert exhausted.spent_usd >= exhausted.budget_usd
    assert len(calls) >= 1


async def test_what_was_spent_before_counts(tmp_path: Path) -> None:
    journal, calls = MemoryJournal(), []
    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up:
        options = {"budget_usd": 0.5, "spent": Usage(cost_usd=0.5), "on_budget": lambda: calls.append(1)}
        async with door(up.url, journal, tmp_path, **options) as opened, guest(opened) as client:
            assert (await client.post("/anthropic/v1/messages", json=message())).status_code == 400
    assert up.requests == [] and calls == [1] and len(journal.of(BudgetExhausted)) == 1


async def test_without_a_budget_nothing_is_refused(tmp_path: Path) -> None:
    journal = MemoryJournal()
    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up, door(up.url, journal, tmp_path) as opened:
        async with guest(opened) as client:
            assert (await client.post("/anthropic/v1/messages", json=message())).status_code == 200
    assert journal.of(BudgetExhausted) == []


async def test_requests_at_once_near_the_end_wait_for_each_other(tmp_path: Path) -> None:
    """Twenty requests at once must not spend twenty times the rest of the budget."""
    journal = MemoryJournal()
    async with upstream(whole(bodies.ANTHROPIC_WHOLE)) as up:
        async with door(up.url, journal, tmp_path, budget_usd=1.5 * EACH) as opened, guest(opened) as client:
            statuses = []

            async def ask() -> None:
                answer = await client.post("/anthropic/v1/messages", json=message("x" * 40_000, max_tokens=32000))
                statuses.append(answer.status_code)

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask)
    assert sorted(statuses) == [200] * 2 + [400] * 18
    assert len(up.requests) == 2


DOCUMENT = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a" * 40_000}}


@pytest.mark.parametrize(
    ("path", "asked", "answer", "each"),
    [
        (
            "/anthropic/v1/messages",
            message(messages=[{"role": "user", "content": [DOCUMENT]}]),
            bodies.ANTHROPIC_WHOLE,
            EACH,
        ),
        (
            "/openai/v1/responses",
            {"model": "gpt-5", "input": "x", "previous_response_id": "resp_1"},
            bodies.RESPONSES_WHOLE.replace(b'"input_tokens":328', b'"input_tokens":200000'),
            0.25,
        ),
    ],
)
async def test_requests_at_once_with_documents_or_old_conversations_wait_for_each_other(
    tmp_path: Path, path: str, asked: dict[str, object], answer: bytes, each: float
) -> None:
    statuses: list[int] = []
    async with upstream(whole(answer)) as up:
        async with door(up.url, MemoryJournal(), tmp_path, budget_usd=1.5 * each) as opened, guest(opened) as client:

            async def ask() -> None:
                statuses.append((await client.post(path, json=asked)).status_code)

            async with anyio.create_task_group() as group:
                for _ in range(10):
                    group.start_soon(ask)
    assert sorted(statuses) == [200] * 2 + [400] * 8


async def test_a_cut_stream_without_a_count_costs_what_was_relayed(tmp_path: Path) -> None:
    journal = MemoryJournal()

    async def cut(_request: object, stream: object) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100000\r\n\r\n"
        await stream.send(head + bodies.CHAT_CHUNK.replace(b'"Hel"', b'"' + b"a" * 4000 + b'"'))  # type: ignore[attr-defined]
        await stream.aclose()  # type: ignore[attr-defined]

    async with upstream(cut) as up, door(up.url, journal, tmp_path, budget_usd=1.0) as opened, guest(opened) as client:
        body = {"model": "gpt-5", "stream": True, "messages": [{"role": "user", "content": "b" * 8000}]}
        with pytest.raises(Exception, match="peer closed"):
            await client.post("/openai/v1/chat/completions", json=body)
    usage = journal.of(ModelCalled)[0].usage
    assert usage.output_tokens == 1000 and 2000 <= usage.input_tokens <= 2010
    assert usage.cost_usd is not None and usage.cost_usd > 0.012


OWN = {"input_tokens": 1_000, "output_tokens": 100}
MUCH = {"input_tokens": 1_000_000, "output_tokens": 100_000}
ASIDE = {"input_tokens": 100_000, "output_tokens": 10_000}
CALL = {"type": "web_search_call", "action": {"type": "search"}}


@pytest.mark.parametrize(
    ("path", "model", "plain", "dear", "dollars"),
    [
        (
            "/anthropic/v1/messages",
            "claude-opus-4-8",
            {"usage": {"input_tokens": 1_000_000, "output_tokens": 100_000, "service_tier": "standard"}},
            {"usage": {"input_tokens": 1_000_000, "output_tokens": 100_000, "speed": "fast"}},
            None,
        ),
        (
            "/anthropic/v1/messages",
            "claude-opus-4-7",
            {"usage": {**MUCH, "inference_geo": "global", "speed": "standard"}},
            {"usage": {**MUCH, "inference_geo": "us", "server_tool_use": {"web_search_requests": 100}}},
            0.75 + 1.0,
        ),
        ("/anthropic/v1/messages", "claude-opus-4-6", {"usage": MUCH}, {"usage": {**MUCH, "speed": "fast"}}, 5 * 7.5),
        ("/anthropic/v1/messages", "claude-opus-4-7", {"usage": MUCH}, {"usage": {**MUCH, "speed": "fast"}}, 5 * 7.5),
        (
            "/anthropic/v1/messages",
            "claude-opus-4-8",
            {"usage": MUCH},
            {"usage": {**MUCH, "speed": "fast", "inference_geo": "us"}},
            2.2 * 7.5 - 7.5,
        ),
        (
            "/anthropic/v1/messages",
            "claude-opus-4-8",
            {"usage": {"input_tokens": 10, "output_tokens": 1}},
            {"usage": {"input_tokens": 10, "output_tokens": 1, "server_tool_use": {"web_search_requests": 100}}},
            1.0,
        ),
        (
            "/anthropic/v1/messages",
            "claude-sonnet-4-5",
            {"usage": {**OWN, "iterations": [{"type": "message", **OWN}]}},
            {"usage": {**OWN, "iterations": [{"type": "compaction", **ASIDE}, {"type": "message", **OWN}]}},
            0.3 + 0.15,
        ),
        (
            "/anthropic/v1/messages",
            "claude-sonnet-4-5",
            {"usage": OWN},
            {"usage": {**OWN, "iterations": [None, {"type": "advisor_message", "model": "claude-opus-4-8", **ASIDE}]}},
            0.5 + 0.25,
        ),
        (
            "/openai/v1/chat/completions",
            "gpt-5.2",
            {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 1}, "service_tier": "default"},
            {"usage": {"prompt_tokens": 1_000_000, "completion_tokens": 1}, "service_tier": "priority"},
            None,
        ),
        (
            "/openai/v1/responses",
            "gpt-5.2",
            {"usage": {"input_tokens": 10, "output_tokens": 1}, "output": [{"type": "message"}]},
            {
                "usage": {"input_tokens": 10, "output_tokens": 1},
                "output": [{"type": "message"}, CALL, CALL, {**CALL, "action": {"type": "open_page"}}],
            },
            0.02,
        ),
        (
            "/openai/v1/responses",
            "gpt-5.2",
            {"usage": OWN, "tool_usage": {"image_gen": {"input_tokens": 0, "output_tokens": 0}}},
            {
                "usage": OWN,
                "output": [{"type": "image_generation_call"}],
                "tool_usage": {"image_gen": {"input_tokens": 10_000, "output_tokens": 100_000}},
            },
            0.1 + 4.0,
        ),
    ],
)
async def test_a_request_served_at_a_higher_price_costs_that_price(
    tmp_path: Path, path: str, model: str, plain: dict[str, object], dear: dict[str, object], dollars: float | None
) -> None:
    costs = []
    for answer in (plain, dear):
        journal = MemoryJournal()
        body = json.dumps({"model": model, **answer}).encode()
        async with upstream(whole(body)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
            assert (await client.post(path, json={"model": model})).status_code == 200
        costs.append(journal.of(ModelCalled)[0].usage.cost_usd or 0.0)
    assert costs[1] == pytest.approx(costs[0] * 2 if dollars is None else costs[0] + dollars)


@pytest.mark.parametrize("tool", ["code_interpreter", "file_search", "image_generation"])
async def test_a_paid_tool_without_a_known_price_is_reported_once(tmp_path: Path, tool: str) -> None:
    journal = MemoryJournal()
    body = json.dumps({"model": "gpt-5.2", "usage": OWN, "output": [{"type": f"{tool}_call"}] * 3}).encode()
    async with upstream(whole(body)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        for _ in range(2):
            assert (await client.post("/openai/v1/responses", json={"model": "gpt-5.2"})).status_code == 200
    [notice] = journal.of(Notice)
    assert notice.code == "door.no_price" and tool in notice.message
    assert all((call.usage.cost_usd or 0) > 0 and call.complete for call in journal.of(ModelCalled))


async def test_a_stream_that_reports_other_models_costs_them_once(tmp_path: Path) -> None:
    journal = MemoryJournal()
    advice = {"type": "advisor_message", "model": "claude-opus-4-8", **ASIDE, "cache_read_input_tokens": 10}
    usage = json.dumps({"output_tokens": 89, "iterations": [advice]})
    delta = f'event: message_delta\ndata: {{"type":"message_delta","delta":{{}},"usage":{usage}}}\n\n'.encode()
    stop = bodies.ANTHROPIC_STREAM.index(b"event: message_stop")
    stream = bodies.ANTHROPIC_STREAM[:stop] + delta * 2 + bodies.ANTHROPIC_STREAM[stop:]
    async with upstream(streamed(stream)) as up, door(up.url, journal, tmp_path) as opened, guest(opened) as client:
        await client.post("/anthropic/v1/messages", json=message(stream=True))
    [called] = journal.of(ModelCalled)
    assert called.complete and called.model == "claude-sonnet-4-5-20250929" and called.usage.requests == 1
    assert (called.usage.input_tokens, called.usage.output_tokens) == (472 + 100_000, 89 + 10_000)
    own = (472 * 3 + 9000 * 0.3 + 100 * 3.75 + 89 * 15) / 1e6
    assert called.usage.cost_usd == pytest.approx(own + 0.75 + 10 * 0.5e-6)


async def test_a_budget_lets_one_wait_until_another_has_paid() -> None:
    budget = Budget(1.0, Usage())
    order: list[str] = []

    async def spend(name: str, cost: float) -> None:
        try:
            async with budget.admitted(0.8):
                order.append(f"{name} in")
                await anyio.lowlevel.checkpoint()
                budget.add(Usage(cost_usd=cost))
        except BudgetSpent:
            order.append(f"{name} refused")

    async with anyio.create_task_group() as group:
        for name, cost in (("a", 0.3), ("b", 0.8), ("c", 0.1)):
            group.start_soon(spend, name, cost)
    assert order == ["a in", "b in", "c refused"]


async def test_a_request_that_waits_for_budget_continues_when_it_is_raised() -> None:
    budget = Budget(0.5, Usage())
    async with anyio.create_task_group() as group, budget.admitted(0.8):
        let_in = anyio.Event()

        async def another() -> None:
            async with budget.admitted(0.8):
                let_in.set()

        group.start_soon(another)
        await anyio.wait_all_tasks_blocked()
        assert not let_in.is_set()
        await budget.allow(5.0)
        with anyio.fail_after(20):
            await let_in.wait()
