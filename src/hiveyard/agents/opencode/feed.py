"""The feed of opencode in its terminal (see terminal.py): its server's events.

Their parts are those that `opencode run` prints, so OpencodeParser reads them. The beginning and end of a turn are
marked differently, and are detected here."""

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


class OpencodeFeedParser:
    """A parser for all turns of a conversation, and of conversations that the user starts after it."""

    def __init__(self) -> None:
        self._stream = OpencodeParser()
        self._conversation: str | None = None
        self._prompts: set[str] = set()
        self._reported_calls: set[str] = set()
        self._working = False
        self._last_text = ""
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
            return self._program_changed()
        event = record(line, "said")
        reader = self._readers().get(text(event.get("type")))
        return None if reader is None else reader(record(event, "properties"))

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

    def _program_changed(self) -> Iterator[AgentEvent]:
        """End the current turn: the program started or ended."""
        if self._working:
            yield self._turn_over(is_error=True, reason="gone", words="opencode ended in the middle of the turn")

    def _started(self, properties: JSON) -> Iterator[AgentEvent]:
        self._conversation = text(properties.get("sessionID"))
        yield AgentStarted(conversation=self._conversation)

    def _permission(self, properties: JSON) -> Iterator[AgentEvent]:
        what = " ".join([text(properties.get("permission")), *map(text, items(properties.get("patterns")))]).strip()
        yield AgentAsked(message=one_line(f"may it use {what or 'a tool'}?"))

    def _question(self, properties: JSON) -> Iterator[AgentEvent]:
        questions = [text(record(question).get("question")) for question in items(properties.get("questions"))]
        yield AgentAsked(message=one_line(" ".join(questions)) or "opencode waits for an answer")

    # --- the conversation -------------------------------------------------------------------------------------------

    def _message(self, properties: JSON) -> Iterator[AgentEvent]:
        """Note a prompt. Its text follows as a part."""
        self._prompts.add(text(record(properties, "info").get("id")))
        if (name := text(properties.get("sessionID"))) and name != self._conversation:
            self._conversation = name
            yield AgentStarted(conversation=name)

    def _part(self, properties: JSON) -> Iterator[AgentEvent]:
        part = record(properties, "part")
        if text(part.get("messageID")) in self._prompts:
            yield from self._prompted(part)
            return
        if part.get("type") == "tool" and record(part, "state").get("status") == "running":
            yield from self._calling(part)
            return
        for event in self._parse({"type": _PARTS.get(text(part.get("type")), ""), "part": part}):
            if isinstance(event, AgentStarted | AgentEnded) or self._already_called(event):
                continue
            self._last_text = event.text if isinstance(event, AgentText) else self._last_text
            yield event
        if part.get("type") == "step-finish":
            self._finish = self._stream.finish

    def _parse(self, line: JSON) -> Sequence[AgentEvent]:
        return self._stream.feed(msgspec.json.encode({**line, "sessionID": self._conversation}))

    def _prompted(self, part: JSON) -> Iterator[AgentEvent]:
        if part.get("type") != "text" or part.get("synthetic") is True or not text(part.get("text")):
            return
        words = text(part.get("text"))
        if self._working and self._stream.error and words == self._prompt:
            return  # after a summary, opencode repeats the prompt to the model
        if not self._working:
            self._stream, self._last_text, self._finish = OpencodeParser(), "", ""
        self._working, self._prompt = True, words
        yield AgentPrompted(text=clip(words))

    def _calling(self, part: JSON) -> Iterator[AgentEvent]:
        call, tool = text(part.get("callID")), text(part.get("tool"))
        if call not in self._reported_calls and tool != "invalid":
            self._reported_calls.add(call)
            yield AgentToolCalled(call=call, tool=tool, summary=summary(tool, record(part, "state", "input")))

    def _already_called(self, event: AgentEvent) -> bool:
        return isinstance(event, AgentToolCalled) and event.call in self._reported_calls

    def _retrying(self, properties: JSON) -> Iterator[AgentEvent]:
        status = record(properties, "status")
        yield AgentRetrying(attempt=count(status.get("attempt")), message=one_line(text(status.get("message"))))

    def _failed(self, properties: JSON) -> Iterator[AgentEvent]:
        error = record(properties, "error")
        if text(error.get("name")) == _ABORTED:
            self._finish = _INTERRUPTED
            return
        self._finish = ""
        yield from (event for event in self._parse({"type": "error", "error": error}) if isinstance(event, AgentError))

    def _idle(self, properties: JSON) -> Iterator[AgentEvent]:
        if not self._working:
            return  # opencode sends this more than once
        if self._stream.error and self._finish != _INTERRUPTED:
            yield self._turn_over(is_error=True, reason="error", words=self._stream.error)
        elif self._finish == "stop":
            yield self._turn_over(is_error=False, reason="stop", words=self._last_text)
        elif self._finish == "length":
            words = "the model's reply was cut at its limit of output tokens"
            yield self._turn_over(is_error=True, reason="length", words=words)
        else:  # no step was completed: the turn was interrupted
            yield self._turn_over(is_error=True, reason=_INTERRUPTED, words="")

    def _turn_over(self, *, is_error: bool, reason: str, words: str) -> AgentEvent:
        self._working = False
        return AgentEnded(is_error=is_error, text=clip(words), reason=reason)
