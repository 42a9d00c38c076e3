"""The app-server of codex (`codex app-server`): JSON-RPC with threads, turns and items.

The driver sends `initialize`, `thread/start` or `thread/resume`, and then one `turn/start` after another. The program
reports a turn as items. These are the items of `codex exec --json` in another spelling, so CodexParser reads them. It
asks for permission by requests whose names end in `requestApproval`. The messages are those of `codex app-server
generate-json-schema`.

Threads that codex starts by itself, for sub-agents, use the same connection. Their activity is reported by the items of
the thread that started them. Their permission requests are forwarded, because nobody else could answer them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.codex.parser import CodexParser
from hiveyard.agents.shared import jsonrpc
from hiveyard.agents.shared.jsonl import JSON
from hiveyard.agents.shared.permission import PermissionRequests, no_such_option, option
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

_BEGIN, _THREAD, _TURN, _STEERING = "initialize", "thread", "turn-", "more-"
_COUNTS = ("inputTokens", "cachedInputTokens", "cacheWriteInputTokens", "outputTokens")
_CAMEL = re.compile(r"(?<=[a-z])([A-Z])")
_DECISIONS = {"item/commandExecution/requestApproval": "shell", "item/fileChange/requestApproval": "apply_patch"}
_ELICITATION = "mcpServer/elicitation/request"
_PLAIN_DECISIONS = ("accept", "acceptForSession", "decline", "cancel")
_DECISION_NAMES = {
    "accept": "allow",
    "acceptForSession": "allow for the rest of the session",
    "acceptWithExecpolicyAmendment": "allow, and all commands that begin like this one",
    "decline": "deny",
    "cancel": "deny, and end the turn",
}
_MAX_PAST = 1000
"""The number of past turns that are remembered. Processes that they left in the background are reported later."""


class CodexServer:
    """The Driver of codex.

    With `ask` False, permission requests that still arrive are granted, except requests for input from the user."""

    def __init__(self, workdir: str, *, conversation: str | None = None, model: str | None = None, ask: bool) -> None:
        self._workdir = workdir
        self._conversation = conversation
        self._model = model
        self._ask = ask
        self._version = ""
        self._open = False
        self._working = False
        self._turn_id = ""
        self._past_turns: deque[str] = deque(maxlen=_MAX_PAST)
        self._interrupting = ""
        self._failure = ""
        self._last_text = ""
        self._last_error = ""
        self._usage_total: JSON = {}
        self._turn = self._new_turn()
        self._permissions = PermissionRequests()

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
        msg = jsonrpc.parse(line)
        if msg is None:
            return Step([AgentOutput(text=clip(decode(line)))] if line.strip() else [])
        if msg.method:
            return self._requested(msg) if msg.id else self._notification(msg)
        return self._response(jsonrpc.own(msg.id), msg)

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        last = one_line(stderr.strip().rpartition("\n")[2]) or f"it exited with code {exit_code}"
        self._failure = self._failure or last
        if not self._working:
            return Step()
        return self._turn_over(AgentEnded(is_error=True, reason=last, code=code_of(0, stderr)))

    # --- input of the program ---------------------------------------------------------------------------------------

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        if self._failure:
            raise AgentFailed(f"codex did not start a conversation: {self._failure}")
        model = {} if self._model is None else {"model": self._model}
        params = {"threadId": self._conversation, "input": _input(text), **model}
        return [jsonrpc.request(f"{_TURN}{key}", "turn/start", params)]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._begin()
        return [AgentPrompted(text=clip(text))]

    def steer(self, key: str, text: str) -> Step:
        if not self._turn_id:
            raise BadInput("codex has no running turn", hint="send it a prompt")
        params = {"threadId": self._conversation, "expectedTurnId": self._turn_id, "input": _input(text)}
        return Step((), [jsonrpc.request(f"{_STEERING}{key}", "turn/steer", params)])

    def interrupt(self, key: str) -> Step:
        if not self._working:
            return Step()
        self._interrupting = key
        return Step((), self._interrupt_lines())

    def choose(self, key: str, model: str) -> Step:
        self._model = checked_model(model)
        return Step()

    def answer(self, request: str, answer: Answer) -> Step:
        if answer.input is not None:
            self._permissions.check(request)
            raise BadInput("codex does not accept other arguments for its request", hint="allow or deny it as it is")
        kept = self._permissions.kept(request)
        chosen = record(kept, "decisions").get(answer.option)
        if answer.option and chosen is None:
            raise no_such_option(answer.option)
        self._permissions.settle(request)
        if chosen is not None:
            return Step((), [jsonrpc.reply(request, {"decision": chosen})])
        return Step((), [_decision(request, text(kept.get("method")), answer.allow)])

    # --- output of the program --------------------------------------------------------------------------------------

    def _requested(self, msg: jsonrpc.Message) -> Step:
        tool = _DECISIONS.get(msg.method) or ("mcp" if msg.method == _ELICITATION else "")
        if not tool:
            return Step((), [jsonrpc.refuse(msg.id, f"{one_line(msg.method, 80)} is not offered")])
        thread = text(msg.params.get("threadId"))
        if not self._other_thread(thread):
            self._note_running(text(msg.params.get("turnId")))
        if not self._ask:
            return Step((), [_decision(msg.id, msg.method, not _needs_input(msg.params))])
        arguments = {
            key: msg.params[key]
            for key in ("command", "cwd", "reason", "message", "serverName", "itemId")
            if msg.params.get(key) is not None
        }
        line = summary(tool, {"description": text(msg.params.get("message")), **arguments}, self._workdir)
        decisions = _decisions(msg)
        kept = {"method": msg.method, "thread": thread, "decisions": decisions}
        options = [option(name, _DECISION_NAMES.get(name, name), _allows(name)) for name in decisions]
        return Step([self._permissions.add(msg.id, tool, arguments, line, kept=kept, options=options)])

    def _notification(self, msg: jsonrpc.Message) -> Step:
        if self._other_thread(thread := text(msg.params.get("threadId"))):
            if msg.method == "turn/completed":
                self._permissions.clear(lambda kept: kept.get("thread") == thread)
            return Step()
        if msg.method == "turn/started":
            self._note_running(text(record(msg.params, "turn").get("id")))
            return Step((), self._interrupt_lines())
        if msg.method in ("item/started", "item/completed"):
            self._note_running(text(msg.params.get("turnId")))
            return Step(list(self._item(msg)))
        if msg.method == "thread/tokenUsage/updated":
            self._count(record(msg.params, "tokenUsage"))
        if msg.method == "error":
            return Step(self._error_event(msg.params))
        if msg.method == "turn/completed":
            return self._ended(record(msg.params, "turn"))
        return Step()

    def _response(self, key: str, msg: jsonrpc.Message) -> Step:
        if key == _BEGIN:
            return self._initialized(msg)
        if key == _THREAD:
            return self._opened(msg)
        if key.startswith(_TURN) and msg.error is not None:
            words = _error_text(msg.error)
            return self._turn_over(AgentEnded(is_error=True, text=clip(words), reason="failed", code=code_of(0, words)))
        if key.startswith(_STEERING) and msg.error is not None:
            # The turn ended before this arrived.
            return Step([AgentError(message=clip(f"it did not accept the text: {_error_text(msg.error)}"))])
        return Step()

    def _initialized(self, msg: jsonrpc.Message) -> Step:
        if msg.error is not None:
            return self._failed(msg.error)
        self._version = text(msg.result.get("userAgent")).partition("/")[2].partition(" ")[0]
        ask = {"approvalPolicy": "untrusted" if self._ask else "never", "sandbox": "danger-full-access"}
        params: JSON = {"cwd": self._workdir, **ask, **({} if self._model is None else {"model": self._model})}
        method = "thread/start"
        if self._conversation is not None:
            method, params = "thread/resume", {**params, "threadId": self._conversation, "excludeTurns": True}
        return Step((), [jsonrpc.notify("initialized", "initialized", {}), jsonrpc.request(_THREAD, method, params)])

    def _opened(self, msg: jsonrpc.Message) -> Step:
        thread = text(record(msg.result, "thread").get("id"))
        if msg.error is not None or not thread:
            return self._failed(msg.error or {"message": "it returned no thread"})
        self._open, self._conversation = True, thread
        model = self._model or text(msg.result.get("model"))
        return Step([AgentStarted(conversation=thread, model=model, version=self._version)])

    def _failed(self, error: JSON) -> Step:
        self._failure = one_line(_error_text(error))
        return Step([AgentError(message=clip(_error_text(error)), code=code_of(0, self._failure))])

    # --- a turn -----------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._working, self._turn_id, self._interrupting = True, "", ""
        self._last_text = self._last_error = ""
        self._turn = self._new_turn()

    def _new_turn(self) -> CodexParser:
        parser = CodexParser()
        parser.feed(msgspec.json.encode({"type": "workdir", "path": self._workdir}))
        return parser

    def _other_thread(self, thread: str) -> bool:
        return bool(thread) and thread != self._conversation

    def _note_running(self, turn: str) -> None:
        """Start a turn if codex works on a prompt that was sent just now, or before this driver existed."""
        if turn in self._past_turns:
            return
        if not self._working:
            self._begin()
        self._turn_id = turn or self._turn_id

    def _interrupt_lines(self) -> Sequence[Line]:
        """Return the lines that interrupt the turn, once its id is known."""
        if not (self._interrupting and self._turn_id):
            return ()
        params = {"threadId": self._conversation, "turnId": self._turn_id}
        return [jsonrpc.request(self._interrupting, "turn/interrupt", params)]

    def _item(self, msg: jsonrpc.Message) -> Iterator[AgentEvent]:
        item = _exec_item(record(msg.params, "item"))
        if text(item.get("type")) in ("user_message", "hook_prompt", "context_compaction"):
            return
        for event in self._turn.feed(msgspec.json.encode({"type": msg.method.replace("/", "."), "item": item})):
            self._last_text = event.text if isinstance(event, AgentText) else self._last_text
            yield event

    def _count(self, used: JSON) -> None:
        """Count tokens. `total` is of the whole conversation, `last` of one request; tokens before the first are not
        this turn's."""
        total, last = record(used, "total"), record(used, "last")
        if not self._usage_total:
            before = {_snake(key): max(0, count(total.get(key)) - count(last.get(key))) for key in _COUNTS}
            self._turn.feed(
                msgspec.json.encode({"type": "event_msg", "payload": {"info": {"total_token_usage": before}}})
            )
        self._usage_total = {_snake(key): count(total.get(key)) for key in _COUNTS}

    def _error_event(self, params: JSON) -> Sequence[AgentEvent]:
        words = _error_text(record(params, "error"))
        self._last_error = words
        if params.get("willRetry") is True:
            return [AgentRetrying(attempt=0, message=one_line(words))]
        return [AgentError(message=clip(words), code=code_of(status_in(words), words))]

    def _ended(self, turn: JSON) -> Step:
        if text(turn.get("id")) in self._past_turns:
            return Step()
        self._turn_id = text(turn.get("id")) or self._turn_id
        status = text(turn.get("status"))
        if status == "completed":
            used = {"type": "turn.completed", "usage": self._usage_total}
            events = [
                event for event in self._turn.feed(msgspec.json.encode(used)) if not isinstance(event, AgentEnded)
            ]
            verdict = self._turn.verdict(0, "")
            return self._turn_over(
                AgentEnded(
                    is_error=not verdict.ok,
                    text=clip(self._last_text),
                    reason=verdict.reason or "completed",
                    code=verdict.code,
                ),
                events if self._usage_total else (),
            )
        if status == "interrupted":
            return self._turn_over(AgentEnded(is_error=True, reason="interrupted", code=AgentFailed.code))
        words = _error_text(record(turn, "error")) if turn.get("error") else self._last_error or status
        code = code_of(status_in(words), words)
        return self._turn_over(AgentEnded(is_error=True, text=clip(words), reason="failed", code=code))

    def _turn_over(self, ended: AgentEnded, events: Sequence[AgentEvent] = ()) -> Step:
        if self._turn_id:
            self._past_turns.append(self._turn_id)
        self._working, self._turn_id, self._interrupting, self._usage_total = False, "", "", {}
        self._permissions.clear(lambda kept: not self._other_thread(text(kept.get("thread"))))
        return Step([*events, ended])


def _input(words: str) -> list[JSON]:
    return [{"type": "text", "text": words, "text_elements": []}]


def _needs_input(params: JSON) -> bool:
    """Return whether consent is not enough: an MCP server asks for values, or sends the user to a web page."""
    return bool(record(params, "requestedSchema").get("required")) or params.get("mode") == "url"


def _decision(request: str, method: str, allow: bool) -> Line:
    if method == _ELICITATION:
        return jsonrpc.reply(request, {"action": "accept", "content": {}} if allow else {"action": "decline"})
    return jsonrpc.reply(request, {"decision": "accept" if allow else "decline"})


def _decisions(msg: jsonrpc.Message) -> JSON:
    """Return the decisions that codex offers, by name. The protocol lists them for commands; changes of files have the
    plain ones. The answer to an MCP server has another form, so it can only be allowed or denied."""
    if msg.method == _ELICITATION:
        return {}
    offered = items(msg.params.get("availableDecisions")) or _PLAIN_DECISIONS
    found: dict[str, object] = {}
    for decision in offered:
        if isinstance(decision, str):
            found[decision] = decision
        elif isinstance(decision, Mapping) and len(decision) == 1:
            found[str(next(iter(decision)))] = decision
    return found


def _allows(name: str) -> bool:
    return name.startswith("accept")


def _snake(name: str) -> str:
    return _CAMEL.sub(lambda found: f"_{found[1]}", name).lower()


def _exec_item(item: Mapping[str, object]) -> JSON:
    """Return an item in the spelling of `codex exec`."""
    spelled: dict[str, object] = {_snake(key): value for key, value in item.items()}
    spelled["type"] = _snake(text(item.get("type")))
    if spelled["type"] == "reasoning":
        parts = items(item.get("summary")) or items(item.get("content"))
        spelled["text"] = "\n".join(text(part) for part in parts)
    if text(item.get("status")) == "inProgress":
        spelled["status"] = ""
    return spelled


def _error_text(error: Mapping[str, object]) -> str:
    words = text(error.get("message"))
    try:
        inner = text(record(msgspec.json.decode(words), "error").get("message")) if words.startswith("{") else ""
    except (msgspec.DecodeError, RecursionError):
        inner = ""
    return inner or words or "an error without a message"
