"""The feed of opencode at its terminal (see terminal.py): its server's events.

Their parts are those that `opencode run` prints, so its parser reads them; what begins and ends a turn is told
differently, and decided here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.opencode.parser import OpencodeParser
from hiveyard.agents.shared.jsonl import JSON, Reader, events
from hiveyard.agents.shared.wording import ending, summary
from hiveyard.core.errors import AgentFailed
from hiveyard.core.events import (
    AgentAsked,
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentPrompted,
    AgentRetrying,
    AgentStarted,
    AgentText,
    AgentToolCalled,
    clip,
)
from hiveyard.core.ports import Verdict
from hiveyard.kit.shape import count, items, record, text
from hiveyard.kit.text import one_line

_ABORTED = "MessageAbortedError"
_INTERRUPTED = "interrupted"
_PARTS = {"text": "text", "reasoning": "reasoning", "tool": "tool_use", "step-finish": "step_finish"}


class OpencodeListener:
    """All turns of a conversation, and of those that a person began after it."""

    def __init__(self) -> None:
        self._stream = OpencodeParser()
        self._conversation: str | None = None
        self._prompts: set[str] = set()
        self._called: set[str] = set()
        self._working = False
        self._said = ""
        self._finish = ""
        self._prompt = ""

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return events(line, self._read)

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        if exit_code == 0:
            return Verdict(True, conversation=self._conversation)
        return Verdict(False, AgentFailed.code, ending("opencode", exit_code, stderr), self._conversation)

    def _read(self, line: JSON) -> Iterator[AgentEvent] | None:
        if "seat" in line:
            return self._cut_off()
        said = record(line, "said")
        reader = self._readers().get(text(said.get("type")))
        return None if reader is None else reader(record(said, "properties"))

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "hiveyard.ready": self._started,
            "message.updated": self._message,
            "message.part.updated": self._part,
            "permission.asked": self._permission,
            "question.asked": self._question,
            "session.error": self._failed,
            "session.idle": self._idle,
            "session.status": self._retrying,
        }

    # --- the program ------------------------------------------------------------------------------------------------

    def _cut_off(self) -> Iterator[AgentEvent]:
        """It began or ended: in the middle of a turn, that is its end too."""
        if self._working:
            yield self._over(is_error=True, reason="gone", words="opencode ended in the middle of the turn")

    def _started(self, told: JSON) -> Iterator[AgentEvent]:
        self._conversation = text(told.get("sessionID"))
        yield AgentStarted(conversation=self._conversation)

    def _permission(self, told: JSON) -> Iterator[AgentEvent]:
        what = " ".join([text(told.get("permission")), *map(text, items(told.get("patterns")))]).strip()
        yield AgentAsked(message=one_line(f"may it use {what or 'a tool'}?"))

    def _question(self, told: JSON) -> Iterator[AgentEvent]:
        questions = [text(record(question).get("question")) for question in items(told.get("questions"))]
        yield AgentAsked(message=one_line(" ".join(questions)) or "opencode waits for an answer")

    # --- the conversation -------------------------------------------------------------------------------------------

    def _message(self, told: JSON) -> Iterator[AgentEvent]:
        """A prompt is announced; its words come as a part."""
        self._prompts.add(text(record(told, "info").get("id")))
        if (name := text(told.get("sessionID"))) and name != self._conversation:
            self._conversation = name
            yield AgentStarted(conversation=name)

    def _part(self, told: JSON) -> Iterator[AgentEvent]:
        part = record(told, "part")
        if text(part.get("messageID")) in self._prompts:
            yield from self._prompted(part)
            return
        if part.get("type") == "tool" and record(part, "state").get("status") == "running":
            yield from self._calling(part)
            return
        for event in self._streamed({"type": _PARTS.get(text(part.get("type")), ""), "part": part}):
            if isinstance(event, AgentStarted | AgentEnded) or self._known(event):
                continue
            self._said = event.text if isinstance(event, AgentText) else self._said
            yield event
        if part.get("type") == "step-finish":
            self._finish = self._stream.finish

    def _streamed(self, line: JSON) -> Sequence[AgentEvent]:
        return self._stream.feed(msgspec.json.encode({**line, "sessionID": self._conversation}))

    def _prompted(self, part: JSON) -> Iterator[AgentEvent]:
        if part.get("type") != "text" or part.get("synthetic") is True or not text(part.get("text")):
            return
        words = text(part.get("text"))
        if self._working and self._stream.error and words == self._prompt:
            return  # it repeats the prompt to the model behind a summary
        if not self._working:
            self._stream, self._said, self._finish = OpencodeParser(), "", ""
        self._working, self._prompt = True, words
        yield AgentPrompted(text=clip(words))

    def _calling(self, part: JSON) -> Iterator[AgentEvent]:
        call, tool = text(part.get("callID")), text(part.get("tool"))
        if call not in self._called and tool != "invalid":
            self._called.add(call)
            yield AgentToolCalled(call=call, tool=tool, summary=summary(tool, record(part, "state", "input")))

    def _known(self, event: AgentEvent) -> bool:
        return isinstance(event, AgentToolCalled) and event.call in self._called

    def _retrying(self, told: JSON) -> Iterator[AgentEvent]:
        status = record(told, "status")
        yield AgentRetrying(attempt=count(status.get("attempt")), message=one_line(text(status.get("message"))))

    def _failed(self, told: JSON) -> Iterator[AgentEvent]:
        error = record(told, "error")
        if text(error.get("name")) == _ABORTED:
            self._finish = _INTERRUPTED
            return
        self._finish = ""
        yield from (
            event for event in self._streamed({"type": "error", "error": error}) if isinstance(event, AgentError)
        )

    def _idle(self, told: JSON) -> Iterator[AgentEvent]:
        if not self._working:
            return  # it says so more than once
        if self._stream.error and self._finish != _INTERRUPTED:
            yield self._over(is_error=True, reason="error", words=self._stream.error)
        elif self._finish == "stop":
            yield self._over(is_error=False, reason="stop", words=self._said)
        elif self._finish == "length":
            words = "the model's reply was cut at its limit of output tokens"
            yield self._over(is_error=True, reason="length", words=words)
        else:  # nothing came to its end: somebody stopped it
            yield self._over(is_error=True, reason=_INTERRUPTED, words="")

    def _over(self, *, is_error: bool, reason: str, words: str) -> AgentEvent:
        self._working = False
        return AgentEnded(is_error=is_error, text=clip(words), reason=reason)
