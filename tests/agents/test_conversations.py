"""Conversations with real agent programs: several turns, permission requests, interrupts and lost readers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from typing import Any

import anyio
import pytest

from hiveyard.core.commands import ProcessStatus
from hiveyard.core.drivers import Answer
from hiveyard.core.errors import BadInput, ProcessEnded
from hiveyard.core.events import (
    AgentAsked,
    AgentEdited,
    AgentEnded,
    AgentEvent,
    AgentPrompted,
    AgentStarted,
    AgentText,
    AgentToolReturned,
    AgentUsage,
)
from hiveyard.library.conversation import Conversation
from hiveyard.testing.script import Call, Fault, File, Script, Step, say, shell
from tests.agents.talking import Stage, stage
from tests.support.leaks import searched_directory

pytestmark = [pytest.mark.real, pytest.mark.anyio]
AGENTS = ("claude", "opencode", "codex", "goose")
QUICK = ("claude", "codex", "goose")
"""Those that start in a moment; opencode has its driver in common with goose."""
CHANGING = ("claude",)
"""Those that take other arguments for what they asked."""

OTHER_MODELS = {
    "claude": "claude-haiku-4-5",
    "opencode": "anthropic/claude-haiku-4-5",
    "codex": "gpt-5.5",
    "goose": "claude-haiku-4-5",
}
SCRIPTS: Mapping[str, Script] = {
    "write": [Step(text="I write.", calls=[Call(write=File(path="a.py", content="x = 1\n"))]), say("Done.")],
    "shell": [shell("echo first > b.txt"), say("Ran.")],
    "slow": [Step(text="Slow " * 60, chunk_delay=0.5), say("never said")],
    "next": [say("I go on.")],
    "refused": [Step(text="no", fault=Fault(status=400, message="that cannot be"))],
}
Open = Callable[[str], AbstractAsyncContextManager[Stage]]


@pytest.fixture
def opened(programs: Mapping[str, Path]) -> Iterator[Open]:
    with searched_directory(prefix="hv-talk-", dir="/tmp") as scratch:
        yield lambda agent: stage(Path(scratch), programs, agent, scripts=SCRIPTS)


async def answered(talk: Conversation, events: AsyncIterator[AgentEvent], answer: Answer) -> list[AgentEvent]:
    """All events; whatever is asked gets the same answer."""
    found = []
    with anyio.fail_after(120):
        async for event in events:
            found.append(event)
            if isinstance(event, AgentAsked):
                await talk.answer(event.request, answer)
    return found


async def turn(talk: Conversation, text: str, *, allow: bool = True, **more: Any) -> list[AgentEvent]:
    async with aclosing(talk.turn(text)) as events:
        return await answered(talk, events, Answer(allow=allow, **more))


def one(events: list[AgentEvent], kind: type[Any]) -> Any:
    found = [event for event in events if isinstance(event, kind)]
    assert len(found) == 1, events
    return found[0]


@pytest.mark.parametrize("agent", AGENTS)
async def test_it_asks_for_permission_in_each_of_several_turns(agent: str, opened: Open) -> None:
    async with opened(agent) as place, place.talk(ask=True, system="Speak as a pirate does.") as talk:
        first = await turn(talk, "[[script:write]] the first")
        asked = one(first, AgentAsked)
        assert "a.py" in asked.message
        assert "a.py" in asked.input
        assert {type(event) for event in first[:2]} == {AgentPrompted, AgentStarted}
        assert one(first, AgentEnded).text == "Done."
        if agent != "codex":  # the script has it write by the shell
            assert one(first, AgentEdited).path == "a.py"
        assert (place.session / "work" / "a.py").read_text() == "x = 1\n"
        denied = await turn(talk, "[[script:shell]] the second", allow=False, message="not on a Sunday")
        assert one(denied, AgentAsked).request != asked.request
        assert one(denied, AgentToolReturned).is_error
        assert not (place.session / "work" / "b.txt").exists()
        third = await turn(talk, "[[script:shell]] the third")
        assert one(third, AgentEnded).text == "Ran."
        assert (place.session / "work" / "b.txt").read_text() == "first\n"
        assert [type(event) for event in third].count(AgentStarted) == 0, "it is one conversation"
        assert one(third, AgentUsage).usage.requests <= 2, "each turn is counted for itself"
        with pytest.raises(BadInput, match="is not waiting"):
            await talk.answer(asked.request, Answer(allow=True))
        await _change_the_arguments(talk, supported=agent in CHANGING)
        written = (place.session / "work" / "b.txt").read_text()
        assert written == ("second\n" if agent in CHANGING else "first\n")
        await talk.close()
        assert await answered(talk, talk.events(), Answer(allow=False)) == []
        assert talk.ended is not None
    assert b"the first" in place.model.asked[-1].body
    for request in place.model.asked:
        assert b"Speak as a pirate does." in request.body
        assert "pirate" not in request.prompt


async def _change_the_arguments(talk: Conversation, *, supported: bool) -> None:
    """Answer a request with other arguments, and as it is if the agent does not take them."""
    async with aclosing(talk.turn("[[script:shell]] the fourth")) as events:
        async for event in events:
            if isinstance(event, AgentAsked):
                other = Answer(allow=True, input={"command": "echo second > b.txt"})
                if supported:
                    await talk.answer(event.request, other)
                    continue
                with pytest.raises(BadInput, match="other arguments"):
                    await talk.answer(event.request, other)
                await talk.answer(event.request, Answer(allow=True))


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_interrupted_turn_keeps_the_conversation(agent: str, opened: Open) -> None:
    async with opened(agent) as place, place.talk(ask=True) as talk:
        await talk.interrupt()  # nothing is at work
        async with aclosing(talk.turn("[[script:slow]] begin")) as events, anyio.create_task_group() as group:

            async def stop() -> None:
                await place.asked()
                await anyio.sleep(1)
                await talk.interrupt()

            group.start_soon(stop)
            found = [event async for event in events]
        assert (one(found, AgentEnded).is_error, one(found, AgentEnded).reason) == (True, "interrupted")
        after = await turn(talk, "[[script:next]] go on")
        assert one(after, AgentEnded).text == "I go on."
        assert not one(after, AgentEnded).is_error
        if agent in QUICK:
            await _leave_a_request_unanswered(talk)
            assert not (place.session / "work" / "b.txt").exists()


async def _leave_a_request_unanswered(talk: Conversation) -> None:
    """Check that a request ends with its turn, and the conversation does not."""
    async with aclosing(talk.turn("[[script:shell]] begin")) as events:
        found = []
        async for event in events:
            found.append(event)
            if isinstance(event, AgentAsked):
                await talk.interrupt()
    assert one(found, AgentEnded).is_error
    with pytest.raises(BadInput, match="is not waiting"):
        await talk.answer(one(found, AgentAsked).request, Answer(allow=True))
    assert one(await turn(talk, "[[script:next]] go on"), AgentEnded).text == "I go on."


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_new_reader_misses_nothing(agent: str, opened: Open) -> None:
    async with opened(agent) as place:
        before: list[AgentEvent] = []
        async with place.talk(ask=True) as talk:
            async with aclosing(talk.turn("[[script:shell]] begin", key="one")) as events:
                async for event in events:
                    before.append(event)
                    if isinstance(event, AgentAsked):
                        break
            offset = talk.offset
        asked = one(before, AgentAsked)
        async with place.talk(ask=True, offset=offset) as talk:
            async with aclosing(talk.events()) as events:
                with anyio.fail_after(60):
                    # A reader that was killed before it answered must be able to answer.
                    await talk.answer(asked.request, Answer(allow=True))
                    after = []
                    async for event in events:
                        after.append(event)
                        if isinstance(event, AgentEnded):
                            break
            assert one(after, AgentEnded).text == "Ran."
            assert one(after, AgentToolReturned).is_error is False
            assert not [event for event in after if isinstance(event, AgentStarted | AgentAsked | AgentPrompted)]
            again = one(await turn(talk, "[[script:next]] go on"), AgentEnded)
            assert again.text == "I go on."
            await talk.prompt("[[script:shell]] begin", key="one")  # a killed sender does not know that it was sent
            await turn(talk, "[[script:next]] once more")
        said = [event.text for event in before + after if isinstance(event, AgentText)]
        assert len(said) == len(set(said))
    assert place.model.asked[-1].body.count(b"[[script:shell]] begin") == 1


@pytest.mark.parametrize("agent", AGENTS)
async def test_another_process_continues_the_conversation(agent: str, opened: Open) -> None:
    async with opened(agent) as place:
        async with place.talk("first") as talk:
            await turn(talk, "[[script:next]] the first question")
            known = talk.conversation
            assert known
            await talk.close()
            await answered(talk, talk.events(), Answer(allow=False))
        async with place.talk("second", conversation=known) as talk:
            events = await turn(talk, "[[script:next]] the second question")
            assert one(events, AgentEnded).text == "I go on."
            assert [event.text for event in events if isinstance(event, AgentText)] == ["I go on."]
            assert talk.conversation == known
    assert b"the first question" in place.model.asked[-1].body


@pytest.mark.parametrize("agent", AGENTS)
async def test_it_asks_for_no_permission_unless_requested_and_takes_another_model(agent: str, opened: Open) -> None:
    async with opened(agent) as place, place.talk() as talk:
        events = await turn(talk, "[[script:shell]] the first")
        assert not any(isinstance(event, AgentAsked) for event in events)
        assert one(events, AgentEnded).text == "Ran."
        assert (place.session / "work" / "b.txt").exists()
        await talk.choose(OTHER_MODELS[agent])
        events = await turn(talk, "[[script:next]] the second")
        assert one(events, AgentEnded).text == "I go on."
        asked = [json.loads(request.body)["model"] for request in place.model.requests if not request.side]
    assert asked[0] != asked[-1] == OTHER_MODELS[agent].rpartition("/")[2]


@pytest.mark.parametrize("agent", QUICK)
async def test_an_error_of_the_model_ends_the_turn_and_the_end_of_the_program_the_conversation(
    agent: str, opened: Open
) -> None:
    async with opened(agent) as place, place.talk() as talk:
        ended = one(await turn(talk, "[[script:refused]] ask"), AgentEnded)
        assert ended.is_error
        assert ended.code
        assert "that cannot be" in ended.text + ended.reason
        assert one(await turn(talk, "[[script:next]] go on"), AgentEnded).text == "I go on."

        async def kill(requests: int) -> None:
            await place.asked(requests)
            await place.manager.stop(place.guest, "live", grace=0)

        async with anyio.create_task_group() as group:
            group.start_soon(kill, len(place.model.requests) + 1)
            async with aclosing(talk.turn("[[script:slow]] begin")) as events:
                found = [event async for event in events]
        assert one(found, AgentEnded).is_error
        assert await answered(talk, talk.events(), Answer(allow=False)) == []
        assert talk.ended is not None
        assert talk.ended.status is ProcessStatus.EXITED
        with pytest.raises(ProcessEnded, match="live has ended"):
            await talk.prompt("anybody there?")
