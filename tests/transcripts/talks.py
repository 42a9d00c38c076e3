"""Conversations with programs that have a driver but no agent: Qwen Code and Gemini CLI.

    python -m tests.transcripts.talks     # writes the .expected files anew: read the diff

CASE.talk has what the driver told the real program (`> `) and what that said, in this order; long lists in it were cut.
It was recorded by hand with the versions in the names of the directories: five turns of a model that keeps to a script,
of which the third is refused by the model and the fourth is interrupted; the second thing that is asked for is denied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from hiveyard.agents.acp.driver import QUIRKS, Acp
from hiveyard.agents.claude.driver import QWEN, ClaudeStream
from hiveyard.core.drivers import Answer, Driver, Line, Step
from hiveyard.core.events import AgentAsked, AgentEvent

HERE = Path(__file__).parent
WORK = "/session/repo"
TALKS: Mapping[str, Callable[[], Driver]] = {
    "qwen-0.24.4/stream": lambda: ClaudeStream(WORK, None, ask=True, dialect=QWEN),
    "qwen-0.24.4/acp": lambda: Acp(WORK, ask=True, quirks=QUIRKS["qwen"]),
    "gemini-0.61.0/acp": lambda: Acp(WORK, ask=True, quirks=QUIRKS["gemini"]),
}
PROMPTS = ("write", "shell", "refused", "slow", "next")


class Replay:
    """A driver that hears a talk again. `told` is what it told, without what it was asked for in between."""

    def __init__(self, driver: Driver) -> None:
        self.events: list[AgentEvent] = []
        self.told: list[bytes] = []
        self._driver = driver
        self._prompts = iter(PROMPTS)
        self._asked = 0
        self._take(driver.start())

    def line(self, line: bytes) -> None:
        if line.startswith(b"> "):
            self._cue(line)
        else:
            self._take(self._driver.feed(line))

    def _cue(self, line: bytes) -> None:
        """Do the user's action at this point of the recording."""
        if b"[[script:" in line:
            name = next(self._prompts)
            number = PROMPTS.index(name)
            text = f"[[script:{name}]] turn {number}"
            self._tell(self._driver.prompt(f"p{number}", text))
            self.events += self._driver.prompt_sent(text)
        elif b'"request_id":"i1"' in line or b"session/cancel" in line:
            self._take(self._driver.interrupt("i1"))

    def _take(self, step: Step) -> None:
        self._tell(step.lines)
        for event in step.events:
            self.events.append(event)
            if isinstance(event, AgentAsked):
                self._asked += 1
                allow = self._asked != 2
                self._take(self._driver.answer(event.request, Answer(allow=allow, message="not on a Sunday")))

    def _tell(self, lines: object) -> None:
        assert isinstance(lines, list | tuple)
        for line in lines:
            assert isinstance(line, Line)
            self.told.append(line.data.rstrip(b"\n"))


def replayed(talk: str) -> Replay:
    replay = Replay(TALKS[talk]())
    for line in (HERE / f"{talk}.talk").read_bytes().splitlines():
        replay.line(line)
    return replay


def described(events: list[AgentEvent]) -> str:
    return "".join(msgspec.json.encode(event, order="sorted").decode() + "\n" for event in events)


if __name__ == "__main__":
    for talk in TALKS:
        (HERE / f"{talk}.expected").write_text(described(replayed(talk).events))
