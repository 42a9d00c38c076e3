"""The app-server of codex (`codex app-server`): JSON-RPC of threads, turns and items.

It is told `initialize`, `thread/start` or `thread/resume`, and then one `turn/start` after the other. What a turn does
comes as items, which are those of `codex exec --json` in another spelling, so that parser reads them; leave is asked
for by requests whose names end in `requestApproval`. The messages are those of `codex app-server generate-json-schema`.

Threads that it begins of its own, for sub-agents, speak on the same line. What they do is told by the items of the
thread that began them; what they ask leave for is asked here, since nobody else is there to say.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.codex.parser import CodexParser
from hiveyard.agents.shared import jsonrpc
from hiveyard.agents.shared.jsonl import JSON
from hiveyard.agents.shared.permission import PermissionRequest
from hiveyard.agents.shared.wording import checked_model, code_of, status_in, summary
from hiveyard.core.drivers import Answer, Line, Step
from hiveyard.core.errors import AgentFailed, BadInput
from hiveyard.core.events import (
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentOutput,
    AgentPrompted,
    AgentRetrying,
    AgentStarted,
    AgentText,
    clip,
)
from hiveyard.kit.shape import count, items, record, text
from hiveyard.kit.text import decode, one_line

_BEGIN, _THREAD, _TURN, _STEER = "initialize", "thread", "turn-", "more-"
_COUNTS = ("inputTokens", "cachedInputTokens", "cacheWriteInputTokens", "outputTokens")
_CAMEL = re.compile(r"(?<=[a-z])([A-Z])")
_DECISIONS = {"item/commandExecution/requestApproval": "shell", "item/fileChange/requestApproval": "apply_patch"}
_ELICITATION = "mcpServer/elicitation/request"
_PAST = 1000
"""Turns that are over and remembered: what they left running in the background is told when it ends."""


class CodexServer:
    """The Driver of codex. `ask` False: leave that it asks for all the same it gets; a person's words it does not."""

    def __init__(self, workdir: str, *, conversation: str | None = None, model: str | None = None, ask: bool) -> None:
        self._workdir = workdir
        self._conversation = conversation
        self._model = model
        self._ask = ask
        self._version = ""
        self._open = False
        self._working = False
        self._turn_id = ""
        self._past: deque[str] = deque(maxlen=_PAST)
        self._interrupting = ""
        self._failure = ""
        self._said = ""
        self._last_error = ""
        self._counted: JSON = {}
        self._turn = self._new_turn()
        self._leave = PermissionRequest()

    @property
    def ready(self) -> bool:
        return bool(self._failure) or (self._open and not self._working)

    @property
    def conversation(self) -> str | None:
        return self._conversation

    def start(self) -> Step:
        about = {"clientInfo": {"name": "hiveyard", "title": "Hiveyard", "version": "1"}}
        return Step((), [jsonrpc.request(_BEGIN, "initialize", about)])

    def feed(self, line: bytes) -> Step:
        said = jsonrpc.said(line)
        if said is None:
            return Step([AgentOutput(text=clip(decode(line)))] if line.strip() else [])
        if said.method:
            return self._asked(said) if said.id else self._notified(said)
        return self._answered(jsonrpc.own(said.id), said)

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        last = one_line(stderr.strip().rpartition("\n")[2]) or f"it is gone (exit code {exit_code})"
        self._failure = self._failure or last
        if not self._working:
            return Step()
        return self._over(AgentEnded(is_error=True, reason=last, code=code_of(0, stderr)))

    # --- what it is told --------------------------------------------------------------------------------------------

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        if self._failure:
            raise AgentFailed(f"codex began no conversation: {self._failure}")
        model = {} if self._model is None else {"model": self._model}
        params = {"threadId": self._conversation, "input": _input(text), **model}
        return [jsonrpc.request(f"{_TURN}{key}", "turn/start", params)]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._begin()
        return [AgentPrompted(text=clip(text))]

    def steer(self, key: str, text: str) -> Step:
        if not self._turn_id:
            raise BadInput("codex is not at work", hint="give it a prompt")
        params = {"threadId": self._conversation, "expectedTurnId": self._turn_id, "input": _input(text)}
        return Step((), [jsonrpc.request(f"{_STEER}{key}", "turn/steer", params)])

    def interrupt(self, key: str) -> Step:
        if not self._working:
            return Step()
        self._interrupting = key
        return Step((), self._interrupted())

    def choose(self, key: str, model: str) -> Step:
        self._model = checked_model(model)
        return Step()

    def answer(self, request: str, answer: Answer) -> Step:
        if answer.input is not None:
            self._leave.check(request)
            raise BadInput("codex takes no other arguments for what it asked", hint="allow it, or say no")
        kept = self._leave.settle(request)
        return Step((), [_decided(request, text(kept.get("method")), answer.allow)])

    # --- what it says -----------------------------------------------------------------------------------------------

    def _asked(self, said: jsonrpc.Said) -> Step:
        tool = _DECISIONS.get(said.method) or ("mcp" if said.method == _ELICITATION else "")
        if not tool:
            return Step((), [jsonrpc.refuse(said.id, f"{one_line(said.method, 80)} is not offered")])
        thread = text(said.params.get("threadId"))
        if not self._others(thread):
            self._found_working(text(said.params.get("turnId")))
        if not self._ask:
            return Step((), [_decided(said.id, said.method, not _wants_words(said.params))])
        wanted = {
            key: said.params[key]
            for key in ("command", "cwd", "reason", "message", "serverName", "itemId")
            if said.params.get(key) is not None
        }
        line = summary(tool, {"description": text(said.params.get("message")), **wanted}, self._workdir)
        kept = {"method": said.method, "thread": thread}
        return Step([self._leave.wanted(said.id, tool, wanted, line, kept=kept)])

    def _notified(self, said: jsonrpc.Said) -> Step:
        if self._others(thread := text(said.params.get("threadId"))):
            if said.method == "turn/completed":
                self._leave.end(lambda kept: kept.get("thread") == thread)
            return Step()
        if said.method == "turn/started":
            self._found_working(text(record(said.params, "turn").get("id")))
            return Step((), self._interrupted())
        if said.method in ("item/started", "item/completed"):
            self._found_working(text(said.params.get("turnId")))
            return Step(list(self._item(said)))
        if said.method == "thread/tokenUsage/updated":
            self._count(record(said.params, "tokenUsage"))
        if said.method == "error":
            return Step(self._troubled(said.params))
        if said.method == "turn/completed":
            return self._ended(record(said.params, "turn"))
        return Step()

    def _answered(self, key: str, said: jsonrpc.Said) -> Step:
        if key == _BEGIN:
            return self._initialized(said)
        if key == _THREAD:
            return self._opened(said)
        if key.startswith(_TURN) and said.error is not None:
            words = _message(said.error)
            return self._over(AgentEnded(is_error=True, text=clip(words), reason="failed", code=code_of(0, words)))
        if key.startswith(_STEER) and said.error is not None:
            # The turn was over before it came.
            return Step([AgentError(message=clip(f"it did not take this: {_message(said.error)}"))])
        return Step()

    def _initialized(self, said: jsonrpc.Said) -> Step:
        if said.error is not None:
            return self._closed(said.error)
        self._version = text(said.result.get("userAgent")).partition("/")[2].partition(" ")[0]
        ask = {"approvalPolicy": "untrusted" if self._ask else "never", "sandbox": "danger-full-access"}
        params: JSON = {"cwd": self._workdir, **ask, **({} if self._model is None else {"model": self._model})}
        method = "thread/start"
        if self._conversation is not None:
            method, params = "thread/resume", {**params, "threadId": self._conversation, "excludeTurns": True}
        return Step((), [jsonrpc.notify("initialized", "initialized", {}), jsonrpc.request(_THREAD, method, params)])

    def _opened(self, said: jsonrpc.Said) -> Step:
        thread = text(record(said.result, "thread").get("id"))
        if said.error is not None or not thread:
            return self._closed(said.error or {"message": "it gave no thread"})
        self._open, self._conversation = True, thread
        model = self._model or text(said.result.get("model"))
        return Step([AgentStarted(conversation=thread, model=model, version=self._version)])

    def _closed(self, error: JSON) -> Step:
        self._failure = one_line(_message(error))
        return Step([AgentError(message=clip(_message(error)), code=code_of(0, self._failure))])

    # --- a turn -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._working, self._turn_id, self._interrupting = True, "", ""
        self._said = self._last_error = ""
        self._turn = self._new_turn()

    def _new_turn(self) -> CodexParser:
        parser = CodexParser()
        parser.feed(msgspec.json.encode({"type": "workdir", "path": self._workdir}))
        return parser

    def _others(self, thread: str) -> bool:
        return bool(thread) and thread != self._conversation

    def _found_working(self, turn: str) -> None:
        """It works: on what it was told a moment ago, or before this driver was there."""
        if turn in self._past:
            return
        if not self._working:
            self._begin()
        self._turn_id = turn or self._turn_id

    def _interrupted(self) -> Sequence[Line]:
        """What ends the turn, once it has a name."""
        if not (self._interrupting and self._turn_id):
            return ()
        params = {"threadId": self._conversation, "turnId": self._turn_id}
        return [jsonrpc.request(self._interrupting, "turn/interrupt", params)]

    def _item(self, said: jsonrpc.Said) -> Iterator[AgentEvent]:
        item = _spelled(record(said.params, "item"))
        if text(item.get("type")) in ("user_message", "hook_prompt", "context_compaction"):
            return
        for event in self._turn.feed(msgspec.json.encode({"type": said.method.replace("/", "."), "item": item})):
            self._said = event.text if isinstance(event, AgentText) else self._said
            yield event

    def _count(self, used: JSON) -> None:
        """`total` is of the whole conversation and `last` of one request: what was before the first is no matter of
        this turn."""
        total, last = record(used, "total"), record(used, "last")
        if not self._counted:
            before = {_snake(key): max(0, count(total.get(key)) - count(last.get(key))) for key in _COUNTS}
            self._turn.feed(
                msgspec.json.encode({"type": "event_msg", "payload": {"info": {"total_token_usage": before}}})
            )
        self._counted = {_snake(key): count(total.get(key)) for key in _COUNTS}

    def _troubled(self, params: JSON) -> Sequence[AgentEvent]:
        words = _message(record(params, "error"))
        self._last_error = words
        if params.get("willRetry") is True:
            return [AgentRetrying(attempt=0, message=one_line(words))]
        return [AgentError(message=clip(words), code=code_of(status_in(words), words))]

    def _ended(self, turn: JSON) -> Step:
        if text(turn.get("id")) in self._past:
            return Step()
        self._turn_id = text(turn.get("id")) or self._turn_id
        status = text(turn.get("status"))
        if status == "completed":
            used = {"type": "turn.completed", "usage": self._counted}
            events = [
                event for event in self._turn.feed(msgspec.json.encode(used)) if not isinstance(event, AgentEnded)
            ]
            verdict = self._turn.verdict(0, "")
            return self._over(
                AgentEnded(
                    is_error=not verdict.ok,
                    text=clip(self._said),
                    reason=verdict.reason or "completed",
                    code=verdict.code,
                ),
                events if self._counted else (),
            )
        if status == "interrupted":
            return self._over(AgentEnded(is_error=True, reason="interrupted", code=AgentFailed.code))
        words = _message(record(turn, "error")) if turn.get("error") else self._last_error or status
        code = code_of(status_in(words), words)
        return self._over(AgentEnded(is_error=True, text=clip(words), reason="failed", code=code))

    def _over(self, ended: AgentEnded, events: Sequence[AgentEvent] = ()) -> Step:
        if self._turn_id:
            self._past.append(self._turn_id)
        self._working, self._turn_id, self._interrupting, self._counted = False, "", "", {}
        self._leave.end(lambda kept: not self._others(text(kept.get("thread"))))
        return Step([*events, ended])


def _input(words: str) -> list[JSON]:
    return [{"type": "text", "text": words, "text_elements": []}]


def _wants_words(params: JSON) -> bool:
    """Whether yes is no answer: a server of MCP asks for values, or sends a person to a page."""
    return bool(record(params, "requestedSchema").get("required")) or params.get("mode") == "url"


def _decided(request: str, method: str, allow: bool) -> Line:
    if method == _ELICITATION:
        return jsonrpc.reply(request, {"action": "accept", "content": {}} if allow else {"action": "decline"})
    return jsonrpc.reply(request, {"decision": "accept" if allow else "decline"})


def _snake(name: str) -> str:
    return _CAMEL.sub(lambda found: f"_{found[1]}", name).lower()


def _spelled(item: Mapping[str, object]) -> JSON:
    """An item as `codex exec` spells it."""
    spelled: dict[str, object] = {_snake(key): value for key, value in item.items()}
    spelled["type"] = _snake(text(item.get("type")))
    if spelled["type"] == "reasoning":
        parts = items(item.get("summary")) or items(item.get("content"))
        spelled["text"] = "\n".join(text(part) for part in parts)
    if text(item.get("status")) == "inProgress":
        spelled["status"] = ""
    return spelled


def _message(error: Mapping[str, object]) -> str:
    words = text(error.get("message"))
    try:
        inner = text(record(msgspec.json.decode(words), "error").get("message")) if words.startswith("{") else ""
    except (msgspec.DecodeError, RecursionError):
        inner = ""
    return inner or words or "an error without words"
