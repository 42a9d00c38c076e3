"""The lines of `opencode run --format json`, and the turn's outcome.

There is no first and no last line: the conversation's id is on each line, and the end is the end of the process. A turn
is complete if its last step ended with the reason `stop`. A denied permission ends the program early with exit code 0.

A conversation that became too long first gives an error. The program then lets the model summarize it, in a step that
looks like any other, and continues. It exits with 1 at the end, because there was an error."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from hiveyard.agents.shared.jsonl import JSON, OUTPUT_LIMIT, Reader, events, ignore
from hiveyard.agents.shared.wording import code_of, created, ending, summary, with_header
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
    """The parser of one turn of opencode."""

    def __init__(self) -> None:
        self._conversation: str | None = None
        self._worked = False
        self._denied: list[str] = []
        self._last_text = ""
        self._finish = ""
        self._usage = Usage(cost_usd=None)
        self._error = ""
        self._error_status = 0
        self._had_error = False
        self._summarizing = False

    @property
    def finish(self) -> str:
        """The reason with which the agent's last step ended. The summary of a long conversation is not a step of the
        agent."""
        return self._finish

    @property
    def error(self) -> str:
        """The last error, if no step of the agent followed it."""
        return self._error

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return events(line, self._read)

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        code, reason = self._outcome(exit_code, stderr)
        return Verdict(not code, code, reason, self._conversation)

    def _read(self, entry: JSON) -> Iterator[AgentEvent] | None:
        reader = self._readers().get(text(entry.get("type")))
        return None if reader is None else self._with_start(entry, reader)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "step_start": ignore,
            "text": self._text,
            "reasoning": self._reasoning,
            "tool_use": self._tool,
            "step_finish": self._finished,
            "error": self._failed,
        }

    def _with_start(self, entry: JSON, reader: Reader) -> Iterator[AgentEvent]:
        """Report the conversation's start with the first line that has its id."""
        if self._conversation is None and text(entry.get("sessionID")):
            self._conversation = text(entry.get("sessionID"))
            yield AgentStarted(conversation=self._conversation)
        yield from reader(entry) or ()

    # --- lines ------------------------------------------------------------------------------------------------------

    def _text(self, entry: JSON) -> Iterator[AgentEvent]:
        part = record(entry, "part")
        words = text(part.get("text"))
        if not words.strip() or part.get("synthetic") is True:  # a text of the program to the model
            return
        if self._summarizing:
            yield AgentThinking(text=clip(words))
            return
        self._last_text = words
        yield AgentText(text=clip(words))

    def _reasoning(self, entry: JSON) -> Iterator[AgentEvent]:
        if (words := text(record(entry, "part").get("text"))).strip():
            yield AgentThinking(text=clip(words))

    def _tool(self, entry: JSON) -> Iterator[AgentEvent]:
        """Report a tool call. It is printed when it is over: its start and its end are one line."""
        part, state = record(entry, "part"), record(entry, "part", "state")
        call, tool, arguments = text(part.get("callID")), text(part.get("tool")), record(state, "input")
        if tool == "invalid":  # in place of an unknown tool, or of invalid arguments
            tool, arguments = text(arguments.get("tool")) or tool, {}
            state = {**state, "status": "error", "error": state.get("output"), "title": ""}
        yield AgentToolCalled(call=call, tool=tool, summary=_summary(tool, arguments, text(state.get("title"))))
        if state.get("status") == "error":
            yield from self._tool_failed(call, tool, text(state.get("error")))
            return
        self._worked = True
        output = clip(text(state.get("output")), OUTPUT_LIMIT)
        yield AgentToolReturned(call=call, tool=tool, output=output, is_error=_exit(state) != 0)
        yield from _edits(call, arguments, state)

    def _tool_failed(self, call: str, tool: str, error: str) -> Iterator[AgentEvent]:
        yield AgentToolReturned(call=call, tool=tool, output=clip(error, OUTPUT_LIMIT), is_error=True)
        if any(sign in error for sign in _REJECTED):
            self._denied.append(tool)
            yield AgentPermissionDenied(tool=tool, message=one_line(error))

    def _finished(self, entry: JSON) -> Iterator[AgentEvent]:
        part, tokens = record(entry, "part"), record(entry, "part", "tokens")
        self._usage += Usage(
            input_tokens=count(tokens.get("input")),
            output_tokens=count(tokens.get("output")) + count(tokens.get("reasoning")),
            cache_read_tokens=count(record(tokens, "cache").get("read")),
            cache_write_tokens=count(record(tokens, "cache").get("write")),
            cost_usd=number(part.get("cost")) or None,  # 0 for models whose price it does not know
            requests=1,
        )
        yield AgentUsage(usage=self._usage)
        if self._summarizing:
            self._summarizing = False
            return
        self._finish, self._error, self._error_status = text(part.get("reason")), "", 0
        if self._finish in ("stop", "length"):
            yield AgentEnded(is_error=self._finish != "stop", text=clip(self._last_text), reason=self._finish)

    def _failed(self, entry: JSON) -> Iterator[AgentEvent]:
        error, data = record(entry, "error"), record(entry, "error", "data")
        words = text(data.get("message")) or text(error.get("message")) or text(error.get("name")) or "an error"
        self._error = words.strip()
        self._error_status = count(data.get("statusCode"))
        self._had_error = True
        self._summarizing = text(error.get("name")) == _TOO_LONG
        yield AgentError(message=clip(words), code=text(error.get("name")))

    # --- the outcome ------------------------------------------------------------------------------------------------

    def _outcome(self, exit_code: int | None, stderr: str) -> tuple[str, str]:
        """Return an error code and its reason; two empty strings mean success."""
        stderr = _error_output(stderr)
        if self._error:
            vague = self._error.startswith("Unexpected server error")
            message = stderr if vague and stderr else self._error
            return code_of(self._error_status, message), one_line(message)
        if self._denied and self._finish != "stop":
            return AgentFailed.code, f"opencode stopped: it may not use {', '.join(sorted(set(self._denied)))}"
        if exit_code is None:
            return AgentFailed.code, ending("opencode", None, stderr)
        if exit_code and not (exit_code == 1 and self._had_error):
            return code_of(0, stderr), ending("opencode", exit_code, stderr)
        return self._by_finish(stderr)

    def _by_finish(self, stderr: str) -> tuple[str, str]:
        if self._finish == "length":
            return AgentFailed.code, "the model's reply was cut at its limit of output tokens"
        if self._finish == "stop":
            if self._worked or self._last_text:
                return "", ""
            return NothingDone.code, "opencode used no tool and wrote no text"
        if not self._finish and not self._worked and not self._last_text:
            return NothingDone.code, f"{ending('opencode', 0, stderr)}, and did nothing"
        how = f"its last step ended with {self._finish!r}" if self._finish else "it completed no step"
        return AgentFailed.code, f"opencode stopped in the middle of the turn: {how}"


def _error_output(stderr: str) -> str:
    """Return stderr without the dates and ids of the program's log, and without the shell's message about a signal."""
    logged = _LOGGED.findall(stderr)
    if logged:
        return str(logged[-1])
    return "" if stderr.strip() in ("Terminated", "Killed", "Hangup") else stderr


def _summary(tool: str, arguments: JSON, title: str) -> str:
    """Return a line about a call. The program's titles are paths relative to the work tree; its input has absolute
    ones."""
    if title and any(text(arguments.get(key)) for key in ("filePath", "path")):
        return summary(tool, {"path": title})
    return summary(tool, arguments) if arguments else summary(tool, {"description": title})


def _exit(state: JSON) -> int:
    return count(record(state, "metadata").get("exit"))


def _edits(call: str, arguments: JSON, state: JSON) -> Iterator[AgentEvent]:
    metadata = record(state, "metadata")
    for file in map(record, items(metadata.get("files"))):  # apply_patch changes several files
        path = text(file.get("relativePath")) or text(file.get("filePath"))
        yield AgentEdited(path=path, diff=clip(with_header(path, text(file.get("patch")))), call=call)
    path, title = text(arguments.get("filePath")), text(state.get("title"))
    if title and path.endswith(f"/{title}"):
        path = title  # the same path, relative to the work tree
    if path and "diff" in metadata:
        yield AgentEdited(path=path, diff=clip(with_header(path, text(metadata.get("diff")))), call=call)
    elif path and "content" in arguments:
        diff = "" if metadata.get("exists") is True else created(path, text(arguments.get("content")))
        yield AgentEdited(path=path, diff=clip(diff), call=call)
