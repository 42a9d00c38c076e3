"""The lines of `opencode run --format json`, and what they say about the turn.

There is no first and no last line: the conversation's id is on each, and the end is the end of the process. A turn is
whole when its last step ended with the reason `stop`; a refused permission ends the program early with exit code 0.

A conversation that grew too long is an error first. The program then has the model sum it up, in a step that looks like
any other, and goes on; it exits with 1 at the end, because there was an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, events, nothing
from hiveyard.agents.shared.wording import code_of, created, ending, headed, summary
from hiveyard.core.errors import AgentFailed, NothingDone
from hiveyard.core.events import (
    AgentEdited,
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentPermissionDenied,
    AgentStarted,
    AgentText,
    AgentThinking,
    AgentToolCalled,
    AgentToolReturned,
    AgentUsage,
    clip,
)
from hiveyard.core.ports import Verdict
from hiveyard.core.usage import Usage
from hiveyard.kit.shape import count, items, number, record, text
from hiveyard.kit.text import one_line

_LOGGED = re.compile(r'\berror(?:\.error|\.message|\.cause)?="((?:[^"\\]|\\.)*)"')
_TOO_LONG = "ContextOverflowError"
_REJECTED = ("rejected permission", "prevents you from using this specific tool call")


class OpencodeParser:
    """One turn of opencode."""

    def __init__(self) -> None:
        self._conversation: str | None = None
        self._worked = False
        self._denied: list[str] = []
        self._said = ""
        self._finish = ""
        self._usage = Usage(cost_usd=None)
        self._error = ""
        self._error_status = 0
        self._erred = False
        self._summing = False

    @property
    def finish(self) -> str:
        """How the agent's last step ended; the summary of a conversation that grew too long is none of its steps."""
        return self._finish

    @property
    def error(self) -> str:
        """The error that no step of the agent has followed."""
        return self._error

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return events(line, self._read)

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        code, reason = self._outcome(exit_code, stderr)
        return Verdict(not code, code, reason, self._conversation)

    def _read(self, said: JSON) -> Iterator[AgentEvent] | None:
        reader = self._readers().get(text(said.get("type")))
        return None if reader is None else self._introducing(said, reader)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "step_start": nothing,
            "text": self._text,
            "reasoning": self._reasoning,
            "tool_use": self._tool,
            "step_finish": self._finished,
            "error": self._failed,
        }

    def _introducing(self, said: JSON, reader: Reader) -> Iterator[AgentEvent]:
        """The conversation's id is on each line: the first one begins it."""
        if self._conversation is None and text(said.get("sessionID")):
            self._conversation = text(said.get("sessionID"))
            yield AgentStarted(conversation=self._conversation)
        yield from reader(said) or ()

    # --- lines ------------------------------------------------------------------------------------------------------

    def _text(self, said: JSON) -> Iterator[AgentEvent]:
        part = record(said, "part")
        words = text(part.get("text"))
        if not words.strip() or part.get("synthetic") is True:  # the program's own words to the model
            return
        if self._summing:
            yield AgentThinking(text=clip(words))
            return
        self._said = words
        yield AgentText(text=clip(words))

    def _reasoning(self, said: JSON) -> Iterator[AgentEvent]:
        if (words := text(record(said, "part").get("text"))).strip():
            yield AgentThinking(text=clip(words))

    def _tool(self, said: JSON) -> Iterator[AgentEvent]:
        """A call comes when it is over: its beginning and its end are one line."""
        part, state = record(said, "part"), record(said, "part", "state")
        call, tool, given = text(part.get("callID")), text(part.get("tool")), record(state, "input")
        if tool == "invalid":  # it stands in for a tool that does not exist, or for arguments that do not fit
            tool, given = text(given.get("tool")) or tool, {}
            state = {**state, "status": "error", "error": state.get("output"), "title": ""}
        yield AgentToolCalled(call=call, tool=tool, summary=_summary(tool, given, text(state.get("title"))))
        if state.get("status") == "error":
            yield from self._tool_failed(call, tool, text(state.get("error")))
            return
        self._worked = True
        output = clip(text(state.get("output")), OUTPUT_LIMIT)
        yield AgentToolReturned(call=call, tool=tool, output=output, is_error=_exit(state) != 0)
        yield from _edits(call, given, state)

    def _tool_failed(self, call: str, tool: str, error: str) -> Iterator[AgentEvent]:
        yield AgentToolReturned(call=call, tool=tool, output=clip(error, OUTPUT_LIMIT), is_error=True)
        if any(sign in error for sign in _REJECTED):
            self._denied.append(tool)
            yield AgentPermissionDenied(tool=tool, message=one_line(error))

    def _finished(self, said: JSON) -> Iterator[AgentEvent]:
        part, tokens = record(said, "part"), record(said, "part", "tokens")
        self._usage += Usage(
            input_tokens=count(tokens.get("input")),
            output_tokens=count(tokens.get("output")) + count(tokens.get("reasoning")),
            cache_read_tokens=count(record(tokens, "cache").get("read")),
            cache_write_tokens=count(record(tokens, "cache").get("write")),
            cost_usd=number(part.get("cost")) or None,  # it calls models that it has no price for free
            requests=1,
        )
        yield AgentUsage(usage=self._usage)
        if self._summing:
            self._summing = False
            return
        self._finish, self._error, self._error_status = text(part.get("reason")), "", 0
        if self._finish in ("stop", "length"):
            yield AgentEnded(is_error=self._finish != "stop", text=clip(self._said), reason=self._finish)

    def _failed(self, said: JSON) -> Iterator[AgentEvent]:
        error, data = record(said, "error"), record(said, "error", "data")
        words = text(data.get("message")) or text(error.get("message")) or text(error.get("name")) or "an error"
        self._error = words.strip()
        self._error_status = count(data.get("statusCode"))
        self._erred = True
        self._summing = text(error.get("name")) == _TOO_LONG
        yield AgentError(message=clip(words), code=text(error.get("name")))

    # --- the outcome ------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        """An error code with its reason; two empty strings are a success."""
        stderr = _complaint(stderr)
        if self._error:
            vague = self._error.startswith("Unexpected server error")
            said = stderr if vague and stderr else self._error
            return code_of(self._error_status, said), one_line(said)
        if self._denied and self._finish != "stop":
            return AgentFailed.code, f"opencode stopped: it may not use {', '.join(sorted(set(self._denied)))}"
        if exit_code is None:
            return AgentFailed.code, ending("opencode", None, stderr)
        if exit_code and not (exit_code == 1 and self._erred):
            return code_of(0, stderr), ending("opencode", exit_code, stderr)
        return self._by_finish(stderr)

    def _by_finish(self, stderr: str) -> tuple[str, str]:
        if self._finish == "length":
            return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
        if self._finish == "stop":
            if self._worked or self._said:
                return "", ""
            return NothingDone.code, "opencode used no tool and said nothing"
        if not self._finish and not self._worked and not self._said:
            return NothingDone.code, f"{ending('opencode', 0, stderr)}, and did nothing"
        how = f"its last step ended with {self._finish!r}" if self._finish else "no step of it came to an end"
        return AgentFailed.code, f"opencode stopped in the middle: {how}"


def _complaint(stderr: str) -> str:
    """What it says on stderr, without the dates and ids of its log, and without the shell's own word on a signal."""
    logged = _LOGGED.findall(stderr)
    if logged:
        return str(logged[-1])
    return "" if stderr.strip() in ("Terminated", "Killed", "Hangup") else stderr


def _summary(tool: str, given: JSON, title: str) -> str:
    """Its own titles are paths seen from the work tree, which its input is not."""
    if title and any(text(given.get(key)) for key in ("filePath", "path")):
        return summary(tool, {"path": title})
    return summary(tool, given) if given else summary(tool, {"description": title})


def _exit(state: JSON) -> int:
    return count(record(state, "metadata").get("exit"))


def _edits(call: str, given: JSON, state: JSON) -> Iterator[AgentEvent]:
    told = record(state, "metadata")
    for file in map(record, items(told.get("files"))):  # apply_patch changes several at once
        path = text(file.get("relativePath")) or text(file.get("filePath"))
        yield AgentEdited(path=path, diff=clip(headed(path, text(file.get("patch")))), call=call)
    path, title = text(given.get("filePath")), text(state.get("title"))
    if title and path.endswith(f"/{title}"):
        path = title  # the same as seen from the work tree
    if path and "diff" in told:
        yield AgentEdited(path=path, diff=clip(headed(path, text(told.get("diff")))), call=call)
    elif path and "content" in given:
        diff = "" if told.get("exists") is True else created(path, text(given.get("content")))
        yield AgentEdited(path=path, diff=clip(diff), call=call)
