"""The real terminal programs of agents in a real tmux, with the scripted model."""

from __future__ import annotations

import hashlib
import unicodedata

import pytest

from hiveyard.core.commands import Command
from hiveyard.core.events import AgentAsked, AgentEdited, AgentPrompted, AgentStarted, AgentText
from hiveyard.testing.script import Call, File, Step, say, shell, tool
from tests.agents.hostile import INSTRUCTIONS, poison
from tests.agents.real import HostYard
from tests.agents.terminal_programs import sitting

pytestmark = [pytest.mark.real, pytest.mark.anyio]
AGENTS = ("claude", "opencode")


def _prompts(events: object) -> list[str]:
    assert isinstance(events, list)
    return [event.text for event in events if isinstance(event, AgentPrompted)]


@pytest.mark.parametrize("agent", AGENTS)
async def test_it_does_what_prompts_say_and_the_user_types_between_them(agent: str, yard: HostYard) -> None:
    file = File(path=str(yard.repo / "a.py"), content="x = 1\n")
    scripts = {"write": [Step(text="I write.", calls=[Call(write=file)]), say("Done.")]}
    async with sitting(yard, agent, [say("I hear you.")], scripts=scripts) as place:
        await place.sit()
        assert (await place.say("[[script:write]] from afar")).ok
        assert not (await place.ended()).is_error
        assert (yard.repo / "a.py").read_text() == "x = 1\n"
        assert (await place.heard(AgentEdited)) == next(e for e in place.events if isinstance(e, AgentEdited))
        await place.shows("from afar")
        await place.press("from the keyboard", "Enter")
        assert (await place.ended(2)).text == "I hear you."
        await place.shows("I hear you.")
        # What a person has begun to write is not lost and not sent.
        await place.press("half a thou")
        assert (await place.say("in between")).ok
        assert not (await place.ended(3)).is_error
        await place.press("ght of mine", "Enter")
        await place.ended(4)
        assert [type(event) for event in place.events].count(AgentStarted) == 1, "it is one conversation"
    texts = ["[[script:write]] from afar", "from the keyboard", "in between", "half a thought of mine"]
    assert _prompts(place.events) == texts
    assert b"from afar" in place.model.asked[-1].body
    assert place.model.saw_key("hv-placeholder")


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_turn_is_interrupted_and_the_conversation_continues(agent: str, yard: HostYard) -> None:
    scripts = {
        "speak": [Step(text="Slow " * 60, chunk_delay=0.5), say("never said")],
        "tool": [shell("perl -e 'sleep 300'"), say("never said")],
        "next": [say("I go on.")],
    }
    async with sitting(yard, agent, scripts=scripts) as place:
        await place.sit()
        for number, script in enumerate(("speak", "tool")):
            requests = len(place.model.requests)
            assert (await place.say(f"[[script:{script}]] begin")).ok
            await place.until(lambda before=requests: len(place.model.requests) > before)  # type: ignore[misc]
            if script == "tool":
                await place.until(lambda: b"sleep 300" in place.feed)
            assert (await place.interrupt()).ok
            ended = await place.ended(2 * number + 1)
            assert (ended.is_error, ended.reason) == (True, "interrupted")
            assert (await place.interrupt()).ok, "nothing at work is a success"
            assert (await place.say("[[script:next]] go on")).ok
            ended = await place.ended(2 * number + 2)
            assert (ended.is_error, ended.text) == (False, "I go on.")


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_conversation_survives_the_loss_of_the_terminal(agent: str, yard: HostYard) -> None:
    scripts = {"slow": [Step(text="Slow " * 60, chunk_delay=0.5)], "next": [say("I remember.")]}
    async with sitting(yard, agent, [say("The first answer.")], scripts=scripts) as place:
        await place.sit()
        assert (await place.say("the first question")).ok
        await place.ended()
        await place.say("[[script:slow]] begin")
        await place.heard(AgentPrompted, 2)
        await place.leave()
        assert (await place.ended(2)).reason in ("gone", "interrupted")
        started = await place.heard(AgentStarted)
        assert isinstance(started, AgentStarted)
        await place.sit(conversation=started.conversation)
        assert (await place.say("[[script:next]] go on")).ok
        assert (await place.ended(3)).text == "I remember."
        again = await place.heard(AgentStarted, 2)
        assert isinstance(again, AgentStarted)
        assert again.conversation == started.conversation
    assert b"The first answer." in place.model.asked[-1].body
    assert [event.text for event in place.events if isinstance(event, AgentText)][-1] == "I remember."
    assert _prompts(place.events) == ["the first question", "[[script:slow]] begin", "[[script:next]] go on"]


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_interrupted_delivery_sends_the_prompt_once(agent: str, yard: HostYard) -> None:
    """Pausing a guest kills a running delivery; after the guest is resumed the prompt is sent again."""
    async with sitting(yard, agent, [say("Read.")]) as place:
        await place.sit()
        assert (await place.say("the first")).ok
        forget = f"rm /tmp/hiveyard-seat-*-{hashlib.sha256(place.turn.state.encode()).hexdigest()[:12]}/told"
        assert (await place.run(Command(shell=forget))).ok, "killed when it had only not written that down"
        assert (await place.say("the first")).ok
        await place.ended()
        texts = ["the first"]
        if agent == "claude":
            await place.press("half a thou")
        for wait in (0.2, 0.4, 0.6, 0.9):
            texts.append(f"cut off after {wait} s")
            words = place.agent.send_prompt(place._prompted(texts[-1])).words()
            await place.run(Command(argv=("timeout", "-s", "KILL", str(wait), *words)))
            assert (await place.say(texts[-1])).ok
            await place.ended(len(texts))
        if agent == "claude":
            texts.append("half a thought of mine")
            await place.press("ght of mine", "Enter")
            await place.ended(len(texts))
    assert _prompts(place.events) == texts


HARD = (
    "/clear",
    "!ls",
    "#note",
    "@README.md",
    "exit",
    "  two words  ",
    "-p --model x",
    "ends with a \\",
    "$(touch /tmp/x) `id` \"double\" 'single' {{prompt}} %s \\n",
    "several\nlines\n\n\twith a tab\r\nand é 🐝 👩‍💻 漢字",
    "/not-a-command with words\nand a line",
    "\x1b[201~\x1b]0;owned\x07 \u202eabc\u202c \u200b\x00 end",
)


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_prompt_of_any_content_is_a_prompt(agent: str, yard: HostYard) -> None:
    async with sitting(yard, agent, [say("Read.")]) as place:
        await place.sit()
        for number, text in enumerate(HARD, 1):
            told = await place.say(text)
            assert told.ok, (text, told.stderr)
            assert (await place.ended(number)).text == "Read."
        asked = [request.prompt for request in place.model.requests]
        big = "first \"line\" 'quoted' $HOME `id` \\n --model x\n\ttab é 🐝 \u202e\n" * 20_000
        assert len(big.encode()) > 1 << 20
        assert (await place.say(f"{big}END")).ok
        assert (await place.ended(len(HARD) + 1)).text == "Read."
        assert _seen(place.model.asked[-1].prompt) == _seen(f"{big}END")
    assert [_seen(text) for text in asked] == [_seen(text) for text in HARD]
    assert [_seen(text) for text in _prompts(place.events)[: len(HARD)]] == [_seen(text) for text in HARD]


def _seen(text: str) -> str:
    """Terminal programs drop what nobody sees."""
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ" and char not in "\u2800\ufffd")


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_repository_cannot_run_code_at_a_terminal(agent: str, yard: HostYard) -> None:
    marks = yard.root / "marks"
    marks.mkdir()
    poison(yard.repo, marks)
    async with sitting(yard, agent, [shell("env | grep HOSTILE; true"), say("Done.")]) as place:
        await place.sit()
        assert (await place.say("do it")).ok
        assert not (await place.ended()).is_error
        assert sorted(mark.name for mark in marks.iterdir()) == []
        assert b"HOSTILE_ENV=1" not in place.feed
        assert INSTRUCTIONS.encode() in place.model.asked[0].body, "its instructions are welcome"
        await place.leave()
        await place.until(lambda: (yard.repo / "opencode.json").exists())
    assert (yard.repo / ".opencode").is_dir(), "its files stand where they stood"


async def test_a_question_of_claude_waits_for_the_user(yard: HostYard) -> None:
    question = {"question": "Which way?", "header": "Way", "multiSelect": False}
    options = [{"label": name, "description": name} for name in ("left", "right")]
    asking = tool("AskUserQuestion", questions=[{**question, "options": options}])
    async with sitting(yard, "claude", [asking, say("Thanks.")]) as place:
        await place.sit()
        assert (await place.say("ask me")).ok
        assert await place.heard(AgentAsked) == AgentAsked(message="Which way?")
        told = await place.say("not now")
        assert not told.ok
        assert told.stderr == b"claude is waiting for the user's answer at its terminal\n"
        await place.press("Enter")
        assert (await place.ended()).text == "Thanks."
        assert [type(event) for event in place.events].count(AgentAsked) == 1
