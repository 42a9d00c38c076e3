"""Record the feeds of the real terminal programs, and the events that the feed parsers make of them.

    python -m tests.transcripts.record_terminals run [AGENT [CASE ...]]     # needs the programs, tmux and root
    python -m tests.transcripts.record_terminals expect                     # writes the .expected files; read the diff

Each case leaves CASE.feed and CASE.expected in the directory of the agent.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import cast

import anyio

from hiveyard import agents
from hiveyard.core.events import AgentAsked, AgentPrompted
from hiveyard.core.ports import HasTerminal
from hiveyard.testing.script import Call, File, Script, Step, refuse, say, shell, tool
from tests.agents.real import find_programs, host_yard
from tests.agents.terminal_programs import Place, heard, sitting
from tests.transcripts.record import TOO_LONG, _neutral, _placed, describe, directory

Story = Callable[[Place], Awaitable[None]]

_QUESTION = {"question": "Which way?", "header": "Way", "multiSelect": False}
_OPTIONS = [{"label": name, "description": name} for name in ("left", "right")]
SCRIPTS: Mapping[str, Script] = {
    "edit": [
        Step(thinking="A small fix.", text="I look first.", calls=[Call(shell="cat README.md")]),
        Step(calls=[Call(write=File(path="REPO/a.py", content="x = 1\n"))]),
        say("Fixed."),
    ],
    "slow": [Step(text="Slow " * 60, chunk_delay=0.5)],
    "tool": [shell("perl -e 'sleep 300'", text="I wait."), say("never said")],
    "while": [shell("perl -e 'sleep 12'; echo woke", text="I wait."), say("Both done.")],
    "refused": [refuse(400, message="prompt is too strange")],
    "failing": [refuse(500)],
    "long": [shell("echo before"), refuse(400, times=1, message=TOO_LONG)],
    "longer": [refuse(400, times=1, message=TOO_LONG)],
    "length": [Step(text="This goes on and", stop="length")] * 6,
    "helper": [
        tool(
            "Agent", description="look", prompt="[[script:plain]] sub", subagent_type="general-purpose", text="I ask."
        ),
        say("It looked."),
    ],
    "task": [
        tool("task", description="look", prompt="[[script:plain]] sub", subagent_type="general"),
        say("It looked."),
    ],
    "ask": [tool("AskUserQuestion", questions=[{**_QUESTION, "options": _OPTIONS}]), say("Thanks.")],
    "question": [tool("question", questions=[{**_QUESTION, "options": _OPTIONS}]), say("Thanks.")],
    "background": [tool("Bash", command="perl -e 'sleep 3'; echo woke", run_in_background=True), say("It runs.")],
    "plain": [say("A plain answer.")],
}


def told(*names: str) -> Story:
    """One turn after the other."""

    async def story(place: Place) -> None:
        await place.sit()
        for number, name in enumerate(names, 1):
            await place.say(f"[[script:{name}]] please")
            await place.ended(number)

    return story


def interrupted(name: str, sign: bytes) -> Story:
    async def story(place: Place) -> None:
        await place.sit()
        await place.say(f"[[script:{name}]] please")
        await place.until(lambda: sign in place.feed)
        if name == "slow":
            await anyio.sleep(3)
        await place.interrupt()
        await place.ended()
        await place.say("[[script:plain]] go on")
        await place.ended(2)

    return story


async def typed(place: Place) -> None:
    await place.sit()
    await place.press("[[script:edit]] by hand", "Enter")
    await place.ended()
    await place.press("/status", "Escape", "Escape", "C-u", "!echo from the shell", "Enter")
    await anyio.sleep(2)
    await place.ended(2)
    await place.press("[[script:plain]] again", "Enter")
    await place.ended(3)


async def joined(place: Place) -> None:
    await place.sit()
    await place.say("[[script:while]] begin")
    await place.until(lambda: b"sleep 12" in place.feed)
    await place.shows("I wait.")
    await place.press("and do this too", "Enter")
    await place.heard(AgentPrompted, 2)
    await place.ended()
    await anyio.sleep(2)


async def resumed(place: Place) -> None:
    await place.sit()
    await place.say("[[script:plain]] first")
    await place.ended()
    await place.say("[[script:tool]] second")
    await place.until(lambda: b"sleep 300" in place.feed)
    await place.leave()
    await place.sit()
    await place.say("[[script:plain]] third")
    await place.ended(3)


def asked(name: str, keys: tuple[str, ...]) -> Story:
    async def story(place: Place) -> None:
        await place.sit()
        await place.say(f"[[script:{name}]] please")
        await place.heard(AgentAsked)
        await anyio.sleep(1)
        await place.press(*keys)
        await place.ended()

    return story


async def background(place: Place) -> None:
    await place.sit()
    await place.say("[[script:background]] please")
    await place.ended(2)


async def cleared(place: Place) -> None:
    await place.sit()
    await place.say("[[script:plain]] first")
    await place.ended()
    await place.press("/clear ", "Enter")
    await anyio.sleep(2)
    await place.press("[[script:plain]] second", "Enter")
    await place.ended(2)


COMMON: Mapping[str, Story] = {
    "edit": told("edit", "plain"),
    "interrupted-speaking": interrupted("slow", b"script:slow"),
    "interrupted-tool": interrupted("tool", b"sleep 300"),
    "joined": joined,
    "refused": told("refused", "plain"),
    "resumed": resumed,
}
CASES: Mapping[str, Mapping[str, Story]] = {
    "claude": {
        **COMMON,
        "asked": asked("ask", ("Enter",)),
        "background": background,
        "cleared": cleared,
        "failing": told("failing", "plain"),
        "helper": told("helper"),
        "length": told("length"),
        "typed": typed,
    },
    "opencode": {
        **COMMON,
        "asked": asked("question", ("Enter",)),
        "compacted": told("long", "longer"),
        "helper": told("task"),
        "length": told("length"),
    },
}


def home(agent: str) -> Path:
    return directory(agent) / "seat"


def expect(agent: str, case: str) -> str:
    listener = cast(HasTerminal, agents.by_name(agent)).feed_parser()
    events = heard(listener, (home(agent) / f"{case}.feed").read_bytes())
    return describe(events, listener.verdict(0, ""))


async def run(agent: str, case: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        async with host_yard(Path(root), find_programs()) as yard:
            scripts = {name: _placed(script, yard) for name, script in SCRIPTS.items()}
            yard.env = {"CLAUDE_CODE_MAX_RETRIES": "1"}
            async with sitting(yard, agent, scripts=scripts) as place:
                await CASES[agent][case](place)
                home(agent).mkdir(exist_ok=True)
                (home(agent) / f"{case}.feed").write_bytes(_neutral(place.feed, root))
        print(agent, case, [type(event).__name__ for event in place.events], flush=True)


async def _run_all(agent: str | None, names: list[str]) -> None:
    for kind in [agent] if agent else list(CASES):
        for name in names or list(CASES[kind]):
            try:
                await run(kind, name)
            except* AssertionError as failed:
                print(kind, name, failed.exceptions, flush=True)


def _expect_all() -> None:
    for agent, cases in CASES.items():
        for name in cases:
            (home(agent) / f"{name}.expected").write_text(expect(agent, name), encoding="utf-8")


if __name__ == "__main__":
    verb, *rest = sys.argv[1:] or ["help"]
    if verb == "run":
        anyio.run(_run_all, rest[0] if rest else None, rest[1:])
    elif verb == "expect":
        _expect_all()
    else:
        sys.exit(__doc__)
