"""The Agent Client Protocol (agentclientprotocol.com, version 1) on the messages of `agent-client-protocol`.

The program is told `initialize`, `session/new` or `session/load`, and then one `session/prompt` after the other; its
answer to a prompt is the end of the turn. What it does meanwhile comes as `session/update`, and what it wants leave for
as `session/request_permission`.

Programs differ where it hurts (a prompt in the middle of a turn is queued, folded in, or ends the turn; an error of the
model is an error, or only a text): prompts go one at a time, and the rest stands in a table of quirks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from acp import schema
from acp.meta import AGENT_METHODS, CLIENT_METHODS, PROTOCOL_VERSION
from acp.utils import serialize_params
from pydantic import BaseModel, ValidationError

from hiveyard.agents.acp.updates import Updates
from hiveyard.agents.shared import jsonrpc
from hiveyard.agents.shared.permission import PermissionRequest
from hiveyard.agents.shared.wording import GOOSE_ERROR_HEAD, checked_model, code_of, status_in
from hiveyard.core.drivers import Answer, Line, Step
from hiveyard.core.errors import AgentFailed, BadInput
from hiveyard.core.events import (
    AgentEnded,
    AgentError,
    AgentEvent,
    AgentOutput,
    AgentPrompted,
    AgentStarted,
    clip,
)
from hiveyard.kit.shape import record, text
from hiveyard.kit.text import decode, one_line

_BEGIN, _SESSION, _MODE, _MODEL = "initialize", "session", "set-mode", "set-model"
_TURN, _SET = "turn-", "set-"
_STOPS = {
    "max_tokens": "the model's reply was cut at its limit of output tokens",
    "max_turn_requests": "it reached its limit of requests",
    "refusal": "the model refused",
}
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """How a program differs. `asking` and `free` are its modes in which it asks leave or asks nothing, where its
    settings do not decide that; `failure` is how the text begins that stands for an error of the model."""

    asking: str = ""
    free: str = ""
    failure: str = ""


QUIRKS: Final[Mapping[str, Quirks]] = {
    "opencode": Quirks(),
    "goose": Quirks(failure=GOOSE_ERROR_HEAD),
    "gemini": Quirks(asking="default", free="yolo"),
    "qwen": Quirks(asking="default", free="yolo"),  # at first it lets a model decide what may be done
}
"""Of the programs that were tried; one that is not here may need none."""


class Acp:
    """The Driver of programs that speak ACP. `ask` False: what a program wants leave for all the same, it gets."""

    def __init__(
        self, workdir: str, *, conversation: str | None = None, model: str | None = None, ask: bool, quirks: Quirks
    ) -> None:
        self._workdir = workdir
        self._conversation = conversation
        self._model = model
        self._ask = ask
        self._quirks = quirks
        self._phase: Literal["opening", "open", "closed"] = "opening"
        self._working = False
        self._told = False
        self._interrupted = False
        self._version = ""
        self._config: Mapping[str, str] = {}
        self._waiting: set[str] = set()
        self._failure = ""
        self._updates = Updates(workdir)
        self._leave = PermissionRequest()

    @property
    def ready(self) -> bool:
        return self._phase == "closed" or (self._phase == "open" and not self._working and not self._waiting)

    @property
    def conversation(self) -> str | None:
        return self._conversation

    def start(self) -> Step:
        asked = schema.InitializeRequest(
            protocol_version=PROTOCOL_VERSION,
            client_capabilities=schema.ClientCapabilities(),
            client_info=schema.Implementation(name="hiveyard", version="1"),
        )
        return Step((), [_request(_BEGIN, "initialize", asked)])

    def feed(self, line: bytes) -> Step:
        said = jsonrpc.said(line)
        if said is None:
            return Step([AgentOutput(text=clip(decode(line)))] if line.strip() else [])
        if said.method:
            return self._asked(said) if said.id else Step(self._notified(said, line))
        return self._answered(jsonrpc.own(said.id), said)

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        last = one_line(stderr.strip().rpartition("\n")[2]) or f"it is gone (exit code {exit_code})"
        self._phase, self._failure = "closed", self._failure or last
        return self._over(AgentEnded(is_error=True, reason=last, code=code_of(0, stderr))) if self._working else Step()

    # --- what it is told --------------------------------------------------------------------------------------------

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        if self._phase == "closed":
            raise AgentFailed(f"the agent began no conversation: {self._failure}")
        content: list[object] = [schema.TextContentBlock(type="text", text=text)]
        return [self._in_session(f"{_TURN}{key}", "session_prompt", schema.PromptRequest, prompt=content)]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._told = True
        self._begin()
        return [AgentPrompted(text=clip(text))]

    def steer(self, key: str, text: str) -> Step:
        raise BadInput("this agent takes nothing in the middle of a turn", hint="interrupt it, or wait for its end")

    def interrupt(self, key: str) -> Step:
        if not self._working:
            return Step()
        self._interrupted = True
        cancel = serialize_params(schema.CancelNotification(session_id=self._conversation or ""))
        # Whoever cancels answers all that is open, says the protocol.
        dropped = [_decided(request, None) for request in self._leave.end()]
        return Step((), [jsonrpc.notify(key, AGENT_METHODS["session_cancel"], cancel), *dropped])

    def choose(self, key: str, model: str) -> Step:
        if "model" not in self._config:
            raise BadInput("this agent does not change its model in a conversation", hint="choose it at the beginning")
        line = self._set_model(f"{_SET}{key}", model)
        self._waiting.add(line.key)
        return Step((), [line])

    def answer(self, request: str, answer: Answer) -> Step:
        if answer.input is not None:
            self._leave.check(request)
            raise BadInput("this agent takes no other arguments for what it asked", hint="allow it, or say no")
        options = self._leave.settle(request)
        kind = "allow" if answer.allow else "reject"
        # Once before always: what is asked next is asked again.
        chosen = text(options.get(f"{kind}_once")) or text(options.get(f"{kind}_always"))
        return Step((), [_decided(request, chosen or None)])

    # --- what it says -----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._working, self._interrupted = True, False
        self._updates.turn()

    def _found_working(self) -> None:
        """It works, and was told to before this driver was there."""
        if not self._working and not self._told:
            self._begin()

    def _notified(self, said: jsonrpc.Said, line: bytes) -> Sequence[AgentEvent]:
        if said.method != CLIENT_METHODS["session_update"]:
            return ()
        if self._phase == "opening":
            return ()  # a conversation that is loaded is told once more, from its beginning
        update = _read(schema.SessionNotification, said.params)
        if update is None:
            return [AgentOutput(text=clip(decode(line)))]
        if self._updates.is_work(update.update):
            self._found_working()
        return list(self._updates.feed(update.update))

    def _asked(self, said: jsonrpc.Said) -> Step:
        if said.method == CLIENT_METHODS["session_request_permission"]:
            return self._wants(said)
        if said.method == CLIENT_METHODS["fs_write_text_file"]:
            # Some ask for it whatever they were told of us, and write the file themselves.
            return Step((), [jsonrpc.reply(said.id, {})])
        return Step((), [jsonrpc.refuse(said.id, f"{one_line(said.method, 80)} is not offered")])

    def _wants(self, said: jsonrpc.Said) -> Step:
        wanted = _read(schema.RequestPermissionRequest, said.params)
        if wanted is None:
            return Step((), [jsonrpc.refuse(said.id, "this is no request for permission", -32602)])
        self._found_working()
        if self._interrupted:
            # It was asked before the program heard of the end: whoever cancels answers all that is open.
            return Step((), [_decided(said.id, None)])
        options: dict[str, str] = {option.kind: option.option_id for option in reversed(wanted.options)}
        events = list(self._updates.asked(wanted.tool_call))
        if not self._ask:
            return Step(events, [_decided(said.id, options.get("allow_once") or options.get("allow_always"))])
        call = self._updates.call(wanted.tool_call.tool_call_id)
        return Step([*events, self._leave.wanted(said.id, call.tool, call.input, call.summary, kept=options)])

    def _answered(self, key: str, said: jsonrpc.Said) -> Step:
        if key == _BEGIN:
            return self._initialized(said)
        if key == _SESSION:
            return self._opened(said)
        if key.startswith(_SET):
            self._waiting.discard(key)
            return self._set(said)
        return self._ended(said) if key.startswith(_TURN) else Step()

    def _initialized(self, said: jsonrpc.Said) -> Step:
        if said.error is not None:
            return self._closed(said.error)
        self._version = text(record(said.result, "agentInfo").get("version"))
        if self._conversation is None:
            new = schema.NewSessionRequest(cwd=self._workdir, mcp_servers=[])
            return Step((), [_request(_SESSION, "session_new", new)])
        load = schema.LoadSessionRequest(cwd=self._workdir, mcp_servers=[], session_id=self._conversation)
        return Step((), [_request(_SESSION, "session_load", load)])

    def _opened(self, said: jsonrpc.Said) -> Step:
        opened = _read(schema.LoadSessionResponse if self._conversation else schema.NewSessionResponse, said.result)
        if said.error is not None or opened is None:
            return self._closed(said.error or {"message": "it gave no session"})
        self._phase = "open"
        self._conversation = text(said.result.get("sessionId")) or self._conversation
        self._config = {
            option.id: text(option.current_value)
            for option in opened.config_options or ()
            if isinstance(option, schema.SessionConfigOptionSelect)
        }
        lines = []
        if mode := self._quirks.asking if self._ask else self._quirks.free:
            self._waiting.add(_MODE)
            lines.append(self._in_session(_MODE, "session_set_mode", schema.SetSessionModeRequest, mode_id=mode))
        if self._model is not None and self._config.get("model", self._model) != self._model:
            lines.append(self._set_model(_MODEL, self._model))
            self._waiting.add(_MODEL)
        started = AgentStarted(
            conversation=self._conversation or "",
            model=self._model or self._config.get("model", ""),
            version=self._version,
        )
        return Step([started], lines)

    def _set(self, said: jsonrpc.Said) -> Step:
        if said.error is None:
            return Step()
        return Step([AgentError(message=clip(_message(said.error)), code=AgentFailed.code)])

    def _ended(self, said: jsonrpc.Said) -> Step:
        if self._interrupted:
            return self._over(AgentEnded(is_error=True, reason="interrupted", code=AgentFailed.code))
        if said.error is not None:
            message = _message(said.error)
            return self._over(
                AgentEnded(is_error=True, text=clip(message), reason="error", code=code_of(status_in(message), message))
            )
        answer = _read(schema.PromptResponse, said.result)
        self._updates.used(answer.usage if answer else None, record(said.result, "_meta", "quota", "token_count"))
        words = self._updates.last_words()
        reason = answer.stop_reason if answer else "no stop reason"
        if reason != "end_turn":
            told = _STOPS.get(reason, reason)
            return self._over(AgentEnded(is_error=True, text=words, reason=told, code=AgentFailed.code))
        if self._quirks.failure and words.startswith(self._quirks.failure):
            return self._over(
                AgentEnded(is_error=True, text=words, reason="error", code=code_of(status_in(words), words))
            )
        return self._over(AgentEnded(is_error=False, text=words, reason="completed"))

    def _over(self, ended: AgentEnded) -> Step:
        self._working = False
        self._leave.end()
        return Step([*self._updates.end(), ended])

    def _closed(self, error: Mapping[str, object]) -> Step:
        self._phase, self._failure = "closed", one_line(_message(error))
        return Step([AgentError(message=clip(_message(error)), code=code_of(0, self._failure))])

    # --- messages ---------------------------------------------------------------------------------------------------

    def _in_session(self, key: str, method: str, kind: type[BaseModel], **params: object) -> Line:
        return _request(key, method, kind(session_id=self._conversation or "", **params))

    def _set_model(self, key: str, model: str) -> Line:
        return self._in_session(
            key,
            "session_set_config_option",
            schema.SetSessionConfigOptionSelectRequest,
            config_id="model",
            value=checked_model(model),
        )


def _read(kind: type[M], data: Mapping[str, object]) -> M | None:
    try:
        return kind.model_validate(data)
    except (ValidationError, RecursionError):
        return None


def _request(key: str, method: str, params: BaseModel) -> Line:
    return jsonrpc.request(key, AGENT_METHODS.get(method, method), serialize_params(params))


def _decided(request: str, option: str | None) -> Line:
    """The answer to a request for permission; None: it is dropped."""
    outcome = {"outcome": "cancelled"} if option is None else {"outcome": "selected", "optionId": option}
    return jsonrpc.reply(request, {"outcome": outcome})


def _message(error: Mapping[str, object]) -> str:
    """What an error says, with what stands in its data."""
    data = error.get("data")
    more = text(data) or text(record(data).get("message")) or text(record(data).get("details"))
    return ": ".join(part for part in (text(error.get("message")), more) if part) or "an error without a message"
