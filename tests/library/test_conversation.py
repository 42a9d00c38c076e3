"""Conversations: ordering, single delivery, and atomic actions. The programs of real agents are in tests/agents."""

from __future__ import annotations

import traceback
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hiveyard.agents.codex.adapter import Codex
from hiveyard.agents.shared import jsonrpc
from hiveyard.core.commands import ProcessInfo, ProcessSpec, ProcessStatus
from hiveyard.core.drivers import Answer
from hiveyard.core.errors import AgentFlood, BadInput, GuestDisconnected, ProcessError, SessionNotStarted
from hiveyard.core.events import AgentAsked, AgentEnded, AgentEvent, AgentPrompted, AgentText
from hiveyard.core.machines import HOST
from hiveyard.core.ports import Guest, Turn
from hiveyard.library import Conversation, Orchestrator, SyncOrchestrator
from hiveyard.library.prepared import Prepared
from hiveyard.processes.detached import Detached
from tests.library.parts import PLACEHOLDER, Yards
from tests.library.talker import Talker
from tests.support.leaks import Said

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def prepared(
    yards: Yards, manager: Detached | None = None, agent: Talker | None = None
) -> AsyncIterator[tuple[Orchestrator, Prepared]]:
    yard = Orchestrator(yards.provider, manager or Detached(), agent or Talker(), on_event=yards.hear)
    ready = await yard.boot_and_prepare(HOST)
    with anyio.fail_after(120):
        yield yard, ready
    await yard.terminate(ready.machine)


@asynccontextmanager
async def talking(yards: Yards, **more: Any) -> AsyncIterator[Conversation]:
    async with prepared(yards, **more) as (yard, ready), yard.converse(ready.machine, ready.turn("live")) as talk:
        yield talk


async def turn(talk: Conversation, text: str) -> list[AgentEvent]:
    return [event async for event in talk.turn(text)]


def words(events: list[AgentEvent]) -> list[str]:
    return [event.text for event in events if isinstance(event, AgentText)]


async def until(kind: type[AgentEvent], events: AsyncGenerator[AgentEvent, None]) -> AgentEvent:
    async with aclosing(events):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"there was no {kind.__name__}")


async def test_unread_events_do_not_block_answers(yards: Yards) -> None:
    loud = "echo ASK one; for i in {1..15000}; do echo SAY x; done; read -r reply; echo SAY $reply"
    async with talking(yards) as talk:
        asked = await until(AgentAsked, talk.turn(loud))
        assert isinstance(asked, AgentAsked)
        await anyio.sleep(3)  # until it is not heard any more
        await talk.answer(asked.request, Answer(allow=True, message="go"))
        await talk.interrupt()
        rest = [event async for event in until_ended(talk)]
    assert words(rest) == [*("x" for _ in range(15000)), "go"]


class _Bounded(Talker):
    """Little is kept of what it says."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def live_process(self, turn: Turn) -> ProcessSpec:
        return replace(super().live_process(turn), output_limit=self._limit)


@pytest.mark.parametrize("limit", [64 << 10, 70_000])
async def test_an_agent_with_full_output_is_stopped_with_an_error(yards: Yards, limit: int) -> None:
    loud = "for i in {1..100000}; do echo SAY $i; done; read -r reply"
    async with prepared(yards, agent=_Bounded(limit)) as (yard, ready):
        heard = []
        async with yard.converse(ready.machine, ready.turn("live")) as talk:
            with pytest.raises(AgentFlood, match=r"live wrote more than the 6[48] KiB"):
                async for event in talk.turn(loud):
                    heard += words([event])
            with pytest.raises(AgentFlood):
                await talk.prompt("echo SAY more")
        assert heard == [str(number) for number in range(1, len(heard) + 1)]
        assert len(heard) > 5000
        (live,) = await yard.processes(ready.machine)
        assert live.status is ProcessStatus.EXITED
        async with yard.converse(ready.machine, ready.turn("live")) as talk:
            with pytest.raises(AgentFlood):
                [event async for event in talk.events()]


async def until_ended(talk: Conversation) -> AsyncIterator[AgentEvent]:
    async for event in talk.events():
        yield event
        if isinstance(event, AgentEnded):
            return


async def test_a_reopened_conversation_accepts_a_prompt_at_once(yards: Yards) -> None:
    async with prepared(yards) as (yard, ready):
        live = ready.turn("live")
        async with yard.converse(ready.machine, live) as talk:
            assert words(await turn(talk, "echo SAY first")) == ["first"]
            offset = talk.offset
        async with yard.converse(ready.machine, live, offset=offset) as talk:
            assert words(await turn(talk, "echo SAY second")) == ["second"]


async def test_a_reopened_conversation_accepts_an_answer_at_once(yards: Yards) -> None:
    async with prepared(yards) as (yard, ready):
        live = ready.turn("live")
        async with yard.converse(ready.machine, live) as talk:
            await until(AgentAsked, talk.turn("echo ASK one; read -r reply; echo SAY $reply"))
            offset = talk.offset
        async with yard.converse(ready.machine, live, offset=offset) as talk:
            await talk.answer("one", Answer(allow=True, message="go"))
            assert words([event async for event in until_ended(talk)]) == ["go"]


async def test_a_key_of_an_ended_turn_yields_the_unread_events(yards: Yards) -> None:
    async with prepared(yards) as (yard, ready):
        live = ready.turn("live")
        async with yard.converse(ready.machine, live) as talk:
            await talk.prompt("echo SAY a", key="a")
            assert words([event async for event in talk.turn("echo SAY b", key="b")]) == ["a", "b"]
            assert [event async for event in talk.turn("echo SAY b", key="b")] == []
            offset = talk.offset
        async with yard.converse(ready.machine, live) as talk:
            events = [event async for event in talk.turn("echo SAY b", key="b")]
            assert words(events) == ["a", "b"]
            assert isinstance(events[-1], AgentEnded)
        async with yard.converse(ready.machine, live, offset=offset) as talk:
            assert [event async for event in talk.turn("echo SAY b", key="b")] == []
            assert words(await turn(talk, "echo SAY c")) == ["c"]


async def test_a_request_from_before_a_crash_is_answered_in_the_same_turn(yards: Yards) -> None:
    async with prepared(yards) as (yard, ready):
        live, text = ready.turn("live"), "echo SAY a; echo ASK one; read -r reply; echo SAY $reply"
        async with yard.converse(ready.machine, live) as talk:
            await until(AgentText, talk.turn(text, key="k"))
            offset = talk.offset
        heard: list[AgentEvent] = []
        async with yard.converse(ready.machine, live, offset=offset) as talk:
            async for event in talk.turn(text, key="k"):
                heard.append(event)
                if isinstance(event, AgentAsked):
                    await talk.answer(event.request, Answer(allow=True, message="go"))
        assert words(heard) == ["go"]
        assert isinstance(heard[-1], AgentEnded)


class _Twice(Detached):
    """A process manager whose connection breaks when a message is stored, so that it is stored again."""

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        await super().send(guest, name, key, data)
        return await super().send(guest, name, key, data)


async def test_a_prompt_stored_by_an_attempt_with_a_lost_answer_is_a_turn(yards: Yards) -> None:
    async with talking(yards, manager=_Twice()) as talk:
        assert words(await turn(talk, "echo SAY a")) == ["a"]
        slow = [event async for event in talk.turn("sleep 1; echo SAY b", key="k")]
    assert words(slow) == ["b"]
    assert isinstance(slow[-1], AgentEnded)


async def test_an_offset_in_the_middle_of_a_line_loses_none_of_its_events(yards: Yards) -> None:
    async with prepared(yards) as (yard, ready):
        live = ready.turn("live")
        async with yard.converse(ready.machine, live) as talk:
            await until(AgentText, talk.turn("echo SAY a b"))
            offset = talk.offset
        async with yard.converse(ready.machine, live, offset=offset) as talk:
            assert words([event async for event in until_ended(talk)]) == ["a", "b"]


async def test_a_prompt_event_does_not_move_the_offset(yards: Yards) -> None:
    async with talking(yards) as talk:
        await talk.prompt("echo SAY a")
        await talk.prompt("echo SAY b")  # the first turn has ended, and nobody has read of it
        offsets = []
        async with aclosing(talk.events()) as events:
            async for event in events:
                offsets.append(talk.offset)
                if isinstance(event, AgentText) and event.text == "b":
                    break
    assert offsets == sorted(offsets)


async def test_a_turn_is_over_at_its_own_end(yards: Yards) -> None:
    async with talking(yards) as talk:
        await until(AgentText, talk.turn("echo SAY a; echo SAY b"))
        events = await turn(talk, "echo SAY c")
    assert words(events) == ["b", "c"]
    assert [type(event) for event in events].count(AgentEnded) == 2


class _Slow(Detached):
    """Says that it is about to send a prompt, and goes on when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.sending, self.may = anyio.Event(), anyio.Event()

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        sent = await super().send(guest, name, key, data)
        self.sending.set()
        await self.may.wait()
        return sent


async def test_a_prompt_that_is_cancelled_after_sending_is_a_turn(yards: Yards) -> None:
    manager = _Slow()
    async with talking(yards, manager=manager) as talk:
        async with anyio.create_task_group() as group:
            group.start_soon(talk.prompt, "echo SAY first")
            await manager.sending.wait()
            group.cancel_scope.cancel()
            manager.may.set()
        assert isinstance(await until(AgentPrompted, talk.events()), AgentPrompted)
        assert words(await turn(talk, "echo SAY second")) == ["first", "second"]


async def test_texts_that_cannot_be_encoded_are_refused(yards: Yards) -> None:
    async with talking(yards) as talk:
        for refused in (talk.prompt("\ud800"), talk.steer("\udcff"), turn(talk, "a\ud800")):
            with pytest.raises(BadInput, match="surrogate"):
                await refused
        asked = await until(AgentAsked, talk.turn("echo ASK one; read -r reply; echo SAY $reply"))
        assert isinstance(asked, AgentAsked)
        with pytest.raises(BadInput, match="surrogate"):
            await talk.answer("one", Answer(allow=True, message="\ud800"))
        await talk.answer("one", Answer(allow=True, message="go"))
        assert words([event async for event in until_ended(talk)]) == ["go"]


class _Keys(Detached):
    def __init__(self) -> None:
        super().__init__()
        self.keys: list[str] = []

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        self.keys.append(key)
        return await super().send(guest, name, key, data)


@pytest.mark.parametrize("key", ["k" * 500, "\ud800", 'a\n"'], ids=["long", "surrogate", "quoted"])
async def test_any_key_is_converted_to_a_valid_id(yards: Yards, key: str) -> None:
    manager = _Keys()
    async with talking(yards, manager=manager) as talk:
        assert words([event async for event in talk.turn("echo SAY a", key=key)]) == ["a"]
        assert [event async for event in talk.turn("echo SAY a", key=key)] == []
        assert words([event async for event in talk.turn("echo SAY b", key="k" * 499)]) == ["b"]
    first, again, other = manager.keys
    assert first == again != other
    assert max(len(jsonrpc.request(f"turn-{one}", "x", {}).data) for one in manager.keys) < 200


class _Failing(Detached):
    """Stores nothing while it is `full`."""

    full = False

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        if self.full:
            raise ProcessError("no room for a message")
        return await super().send(guest, name, key, data)


async def test_an_answer_that_could_not_be_sent_can_be_repeated(yards: Yards) -> None:
    manager, yes = _Failing(), Answer(allow=True, message="go")
    async with talking(yards, manager=manager) as talk:
        await until(AgentAsked, talk.turn("echo ASK one; read -r reply; echo SAY $reply"))
        manager.full = True
        for _ in range(2):
            with pytest.raises(ProcessError, match="no room"):
                await talk.answer("one", yes)
        manager.full = False
        await talk.answer("one", yes)
        with pytest.raises(BadInput, match="nobody waits"):
            await talk.answer("one", yes)
        assert words([event async for event in until_ended(talk)]) == ["go"]


async def test_an_answer_that_could_not_be_sent_is_sent_before_the_next_action(yards: Yards) -> None:
    manager = _Failing()
    async with talking(yards, manager=manager) as talk:
        await until(AgentAsked, talk.turn("echo ASK one; read -r a; read -r b; echo SAY $a $b"))
        manager.full = True
        with pytest.raises(ProcessError):
            await talk.answer("one", Answer(allow=True, message="first"))
        manager.full = False
        await talk.steer("second")
        assert words([event async for event in until_ended(talk)]) == ["first", "second"]


async def test_an_error_in_the_block_is_raised_unchanged(yards: Yards) -> None:
    async with prepared(yards) as (yard, ready):
        with pytest.raises(BadInput, match="nobody waits for one"):
            async with yard.converse(ready.machine, ready.turn("live")) as talk:
                await talk.answer("one", Answer(allow=True))


async def test_events_that_a_script_does_not_request_are_not_consumed(yards: Yards) -> None:
    orchestrator = Orchestrator(yards.provider, Detached(), Talker(), on_event=yards.hear)
    rest = []

    def script() -> None:
        with SyncOrchestrator(orchestrator) as yard:
            ready = yard.boot_and_prepare(HOST)
            with yard.converse(ready.machine, ready.turn("live")) as talk:
                for event in talk.turn("echo SAY a; echo SAY b; echo SAY c"):
                    if event == AgentText(text="a"):
                        break
                offset = talk.offset
                for event in talk.events():
                    rest.append(event)
                    if isinstance(event, AgentEnded):
                        break
                assert talk.offset - offset == len("SAY b\nSAY c\nEND\n")
            yard.terminate(ready.machine)

    await anyio.to_thread.run_sync(script)
    assert words(rest) == ["b", "c"]


class _Unreachable(Detached):
    """Finds nothing and starts nothing while the connection is `broken`."""

    broken = looking = False

    async def get(self, guest: Guest, name: str) -> ProcessInfo:
        if self.looking:
            raise GuestDisconnected("the connection broke")
        return await super().get(guest, name)

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        if self.broken:
            raise GuestDisconnected("the connection broke")
        return await super().start(guest, spec)


@pytest.mark.parametrize("looking", [False, True], ids=["found", "unknown"])
@pytest.mark.parametrize("again", [False, True], ids=["from its beginning", "from an offset"])
async def test_a_failed_reopening_does_not_lose_the_conversation(yards: Yards, again: bool, looking: bool) -> None:
    manager = _Unreachable()
    async with prepared(yards, manager) as (yard, ready):
        live = ready.turn("live", command="true")
        async with yard.converse(ready.machine, live) as talk:
            assert words(await turn(talk, "echo SAY first")) == ["first"]
            offset = talk.offset
        manager.broken, manager.looking = True, looking
        with pytest.raises(SessionNotStarted, match="the connection broke"):
            async with yard.converse(ready.machine, live, offset=offset if again else 0):
                pass
        with pytest.raises(SessionNotStarted):
            await yard.start_session(ready.machine, live)
        assert yards.told()[-2:] == ["session_failed", "machine_kept"]
        manager.broken = manager.looking = False
        async with yard.converse(ready.machine, live, offset=offset) as talk:
            assert words(await turn(talk, "echo SAY second")) == ["second"]


async def test_a_conversation_that_failed_to_start_leaves_no_machine(yards: Yards) -> None:
    manager = _Unreachable()
    manager.broken = True
    yard = Orchestrator(yards.provider, manager, Talker(), on_event=yards.hear)
    ready = await yard.boot_and_prepare(HOST)
    with pytest.raises(SessionNotStarted):
        async with yard.converse(ready.machine, ready.turn("live")):
            pass
    assert yards.told()[-2:] == ["session_failed", "machine_terminated"]


class _Saying(Detached):
    """In a guest that puts what it knows into what it answers."""

    async def send(self, guest: Guest, name: str, key: str, data: bytes) -> bool:
        raise ProcessError(f"not stored: {PLACEHOLDER}", said=PLACEHOLDER)

    async def get(self, guest: Guest, name: str) -> ProcessInfo:
        raise ProcessError(f"not known: {PLACEHOLDER}")


async def test_the_errors_of_a_conversation_have_no_secret(yards: Yards, said: Said) -> None:
    async with prepared(yards, _Saying()) as (yard, ready):
        live = ready.turn("live", placeholder=PLACEHOLDER)
        async with yard.converse(ready.machine, live) as talk:
            with pytest.raises(ProcessError, match="not stored: \\*") as refused:
                await talk.prompt("echo SAY a")
            await talk.close()
            with pytest.raises(ProcessError, match="not known: \\*") as lost:
                [event async for event in talk.events()]
    for error in (refused.value, lost.value):
        said.add("".join(traceback.format_exception(error)) + repr(error.context))


async def test_an_invalid_conversation_starts_no_process(yards: Yards) -> None:
    yard = Orchestrator(yards.provider, Detached(), Codex(), on_event=yards.hear)
    ready = await yard.boot_and_prepare(HOST)
    with pytest.raises(BadInput, match="is not a valid id of a conversation"):
        async with yard.converse(ready.machine, ready.turn("live", conversation="-x")):
            pass
    assert await yard.processes(ready.machine) == []
    await yard.terminate(ready.machine)
