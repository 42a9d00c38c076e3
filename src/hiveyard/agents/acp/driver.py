"""The Agent Client Protocol (agentclientprotocol.com, version 1), with the messages of `agent-client-protocol`.

The driver sends `initialize`, `session/new` or `session/load`, and then one `session/prompt` after another. The answer
to a prompt is the end of the turn. Until then the program sends its activity as `session/update` and its permission
requests as `session/request_permission`.

Programs differ in important ways: a prompt in the middle of a turn is queued, added to the turn, or ends it; an error
of the model is an error, or only a text. Prompts are therefore sent one at a time, and the other differences are in a
table of quirks."""

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
from hiveyard.agents.shared.permission import PermissionRequests, no_such_option, option
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
from hiveyard.core.tools import ToolServer
from hiveyard.kit.shape import record, text
from hiveyard.kit.text import decode, one_line

_BEGIN, _SESSION, _SESSION_ANEW, _MODE, _MODEL = "initialize", "session", "session-anew", "set-mode", "set-model"
_TURN, _SETTING = "turn-", "set-"
_STOPS = {
    "max_tokens": "the model's reply was cut at its limit of output tokens",
    "max_turn_requests": "it reached its limit of requests",
    "refusal": "the model refused",
}
M = TypeVar("M", bound=BaseModel)
_Server = schema.HttpMcpServer | schema.SseMcpServer | schema.AcpMcpServer | schema.McpServerStdio


@dataclass(frozen=True, slots=True, kw_only=True)
class Quirks:
    """The peculiarities of one program.

    `ask_mode` and `free_mode` are its modes with and without permission requests, if its settings do not decide this.
    `error_prefix` is the beginning of a text that represents an error of the model."""

    ask_mode: str = ""
    free_mode: str = ""
    error_prefix: str = ""


QUIRKS: Final[Mapping[str, Quirks]] = {
    "opencode": Quirks(),
    "goose": Quirks(error_prefix=GOOSE_ERROR_HEAD),
    "gemini": Quirks(ask_mode="default", free_mode="yolo"),
    "qwen": Quirks(ask_mode="default", free_mode="yolo"),  # its default mode lets a model decide on permissions
}
"""The quirks of tested programs. A program that is not here may need none."""


class Acp:
    """The Driver of programs that speak ACP. With `ask` False, permission requests that still arrive are granted. `mcp`
    are the tool servers for a program whose own settings do not have them."""

    def __init__(
        self,
        workdir: str,
        *,
        conversation: str | None = None,
        model: str | None = None,
        ask: bool,
        quirks: Quirks,
        mcp: Mapping[str, ToolServer] | None = None,
    ) -> None:
        self._workdir = workdir
        self._servers = [_server(name, server) for name, server in (mcp or {}).items()]
        self._conversation = conversation
        self._model = model
        self._ask = ask
        self._quirks = quirks
        self._phase: Literal["opening", "open", "closed"] = "opening"
        self._working = False
        self._prompt_seen = False
        self._interrupted = False
        self._version = ""
        self._config: Mapping[str, str] = {}
        self._pending: set[str] = set()
        self._start_error = ""
        self._updates = Updates(workdir)
        self._permissions = PermissionRequests()

    @property
    def ready(self) -> bool:
        return self._phase == "closed" or (self._phase == "open" and not self._working and not self._pending)

    @property
    def conversation(self) -> str | None:
        return self._conversation

    def start(self) -> Step:
        init = schema.InitializeRequest(
            protocol_version=PROTOCOL_VERSION,
            client_capabilities=schema.ClientCapabilities(),
            client_info=schema.Implementation(name="hiveyard", version="1"),
        )
        return Step((), [_request(_BEGIN, "initialize", init)])

    def feed(self, line: bytes) -> Step:
        msg = jsonrpc.parse(line)
        if msg is None:
            return Step([AgentOutput(text=clip(decode(line)))] if line.strip() else [])
        if msg.method:
            return self._requested(msg) if msg.id else Step(self._notification(msg, line))
        return self._response(jsonrpc.own(msg.id), msg)

    def exited(self, exit_code: int | None, stderr: str) -> Step:
        last = one_line(stderr.strip().rpartition("\n")[2]) or f"it exited with code {exit_code}"
        self._phase, self._start_error = "closed", self._start_error or last
        if not self._working:
            return Step()
        return self._turn_over(AgentEnded(is_error=True, reason=last, code=code_of(0, stderr)))

    # --- input of the program ---------------------------------------------------------------------------------------

    def prompt(self, key: str, text: str) -> Sequence[Line]:
        if self._phase == "closed":
            raise AgentFailed(f"the agent did not start a conversation: {self._start_error}")
        content: list[object] = [schema.TextContentBlock(type="text", text=text)]
        return [self._in_session(f"{_TURN}{key}", "session_prompt", schema.PromptRequest, prompt=content)]

    def prompt_sent(self, text: str) -> Sequence[AgentEvent]:
        self._prompt_seen = True
        self._begin()
        return [AgentPrompted(text=clip(text))]

    def steer(self, key: str, text: str) -> Step:
        raise BadInput("this agent takes no text in the middle of a turn", hint="interrupt it, or wait for its end")

    def interrupt(self, key: str) -> Step:
        if not self._working:
            return Step()
        self._interrupted = True
        cancel = serialize_params(schema.CancelNotification(session_id=self._conversation or ""))
        # The protocol requires that the client that cancels answers all open requests.
        cancelled = [_decision(request, None) for request in self._permissions.clear()]
        return Step((), [jsonrpc.notify(key, AGENT_METHODS["session_cancel"], cancel), *cancelled])

    def choose(self, key: str, model: str) -> Step:
        if "model" not in self._config:
            raise BadInput("this agent cannot change its model in a conversation", hint="choose it at the start")
        line = self._set_model(f"{_SETTING}{key}", model)
        self._pending.add(line.key)
        return Step((), [line])

    def answer(self, request: str, answer: Answer) -> Step:
        if answer.input is not None:
            self._permissions.check(request)
            raise BadInput(
                "this agent does not accept other arguments for its request", hint="allow or deny it as it is"
            )
        kept = self._permissions.kept(request)
        if answer.option and answer.option not in record(kept, "ids"):
            raise no_such_option(answer.option)
        self._permissions.settle(request)
        kind = "allow" if answer.allow else "reject"
        # "once" is preferred to "always", so that the next request is asked again.
        plain = text(kept.get(f"{kind}_once")) or text(kept.get(f"{kind}_always"))
        return Step((), [_decision(request, answer.option or plain or None)])

    # --- output of the program --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._working, self._interrupted = True, False
        self._updates.start_turn()

    def _note_running(self) -> None:
        """Start a turn if the program works on a prompt that was sent before this driver existed."""
        if not self._working and not self._prompt_seen:
            self._begin()

    def _notification(self, msg: jsonrpc.Message, line: bytes) -> Sequence[AgentEvent]:
        if msg.method != CLIENT_METHODS["session_update"]:
            return ()
        if self._phase == "opening":
            return ()  # a loaded conversation is replayed from its beginning
        update = _read(schema.SessionNotification, msg.params)
        if update is None:
            return [AgentOutput(text=clip(decode(line)))]
        if self._updates.starts_work(update.update):
            self._note_running()
        return list(self._updates.feed(update.update))

    def _requested(self, msg: jsonrpc.Message) -> Step:
        if msg.method == CLIENT_METHODS["session_request_permission"]:
            return self._permission_wanted(msg)
        if msg.method == CLIENT_METHODS["fs_write_text_file"]:
            # Some programs send this although we do not offer it, and write the file themselves.
            return Step((), [jsonrpc.reply(msg.id, {})])
        return Step((), [jsonrpc.refuse(msg.id, f"{one_line(msg.method, 80)} is not offered")])

    def _permission_wanted(self, msg: jsonrpc.Message) -> Step:
        permission = _read(schema.RequestPermissionRequest, msg.params)
        if permission is None:
            return Step((), [jsonrpc.refuse(msg.id, "not a valid permission request", -32602)])
        self._note_running()
        if self._interrupted:
            # Sent before the program got the cancellation. The client that cancels answers all open requests.
            return Step((), [_decision(msg.id, None)])
        options: dict[str, str] = {option.kind: option.option_id for option in reversed(permission.options)}
        events = list(self._updates.permission_asked(permission.tool_call))
        if not self._ask:
            return Step(events, [_decision(msg.id, options.get("allow_once") or options.get("allow_always"))])
        call = self._updates.call(permission.tool_call.tool_call_id)
        offered = [option(one.option_id, one.name, one.kind.startswith("allow")) for one in permission.options]
        kept = {**options, "ids": {one.id: one.allow for one in offered}}
        asked = self._permissions.add(msg.id, call.tool, call.input, call.summary, kept=kept, options=offered)
        return Step([*events, asked])

    def _response(self, key: str, msg: jsonrpc.Message) -> Step:
        if key == _BEGIN:
            return self._initialized(msg)
        if key in (_SESSION, _SESSION_ANEW):
            return self._opened(msg)
        if key.startswith(_SETTING):
            self._pending.discard(key)
            return self._setting_done(msg)
        return self._ended(msg) if key.startswith(_TURN) else Step()

    def _initialized(self, msg: jsonrpc.Message) -> Step:
        if msg.error is not None:
            return self._failed(msg.error)
        self._version = text(record(msg.result, "agentInfo").get("version"))
        if self._conversation is None:
            return Step((), [self._new_session(_SESSION)])
        load = schema.LoadSessionRequest(cwd=self._workdir, mcp_servers=self._servers, session_id=self._conversation)
        return Step((), [_request(_SESSION, "session_load", load)])

    def _begun_anew(self, error: Mapping[str, object]) -> Step:
        """Begin a new conversation instead of the one that the program does not find, and say so."""
        lost, self._conversation = self._conversation, None
        words = f"a new conversation begins, because {lost} was not found: {_error_text(error)}"
        return Step([AgentError(message=clip(words))], [self._new_session(_SESSION_ANEW)])

    def _new_session(self, key: str) -> Line:
        return _request(key, "session_new", schema.NewSessionRequest(cwd=self._workdir, mcp_servers=self._servers))

    def _opened(self, msg: jsonrpc.Message) -> Step:
        opened = _read(schema.LoadSessionResponse if self._conversation else schema.NewSessionResponse, msg.result)
        if msg.error is not None and self._conversation is not None:
            return self._begun_anew(msg.error)
        if msg.error is not None or opened is None:
            return self._failed(msg.error or {"message": "it returned no session"})
        self._phase = "open"
        self._conversation = text(msg.result.get("sessionId")) or self._conversation
        self._config = {
            option.id: text(option.current_value)
            for option in opened.config_options or ()
            if isinstance(option, schema.SessionConfigOptionSelect)
        }
        lines = []
        if mode := self._quirks.ask_mode if self._ask else self._quirks.free_mode:
            self._pending.add(_MODE)
            lines.append(self._in_session(_MODE, "session_set_mode", schema.SetSessionModeRequest, mode_id=mode))
        if self._model is not None and self._config.get("model", self._model) != self._model:
            lines.append(self._set_model(_MODEL, self._model))
            self._pending.add(_MODEL)
        started = AgentStarted(
            conversation=self._conversation or "",
            model=self._model or self._config.get("model", ""),
            version=self._version,
        )
        return Step([started], lines)

    def _setting_done(self, msg: jsonrpc.Message) -> Step:
        if msg.error is None:
            return Step()
        return Step([AgentError(message=clip(_error_text(msg.error)), code=AgentFailed.code)])

    def _ended(self, msg: jsonrpc.Message) -> Step:
        if self._interrupted:
            return self._turn_over(AgentEnded(is_error=True, reason="interrupted", code=AgentFailed.code))
        if msg.error is not None:
            message = _error_text(msg.error)
            return self._turn_over(
                AgentEnded(is_error=True, text=clip(message), reason="error", code=code_of(status_in(message), message))
            )
        answer = _read(schema.PromptResponse, msg.result)
        self._updates.set_usage(answer.usage if answer else None, record(msg.result, "_meta", "quota", "token_count"))
        words = self._updates.last_text()
        reason = answer.stop_reason if answer else "no stop reason"
        if reason != "end_turn":
            reason_text = _STOPS.get(reason, reason)
            return self._turn_over(AgentEnded(is_error=True, text=words, reason=reason_text, code=AgentFailed.code))
        if self._quirks.error_prefix and words.startswith(self._quirks.error_prefix):
            return self._turn_over(
                AgentEnded(is_error=True, text=words, reason="error", code=code_of(status_in(words), words))
            )
        return self._turn_over(AgentEnded(is_error=False, text=words, reason="completed"))

    def _turn_over(self, ended: AgentEnded) -> Step:
        self._working = False
        self._permissions.clear()
        return Step([*self._updates.end_turn(), ended])

    def _failed(self, error: Mapping[str, object]) -> Step:
        self._phase, self._start_error = "closed", one_line(_error_text(error))
        return Step([AgentError(message=clip(_error_text(error)), code=code_of(0, self._start_error))])

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


def _server(name: str, server: ToolServer) -> _Server:
    """Return a tool server as a message has it. Messages are the input of the program, so it may have secrets."""
    values = {key: value.reveal() for key, value in server.values.items()}
    if server.url:
        headers = [schema.HttpHeader(name=key, value=value) for key, value in values.items()]
        return schema.HttpMcpServer(type="http", name=name, url=server.url, headers=headers)
    env = [schema.EnvVariable(name=key, value=value) for key, value in values.items()]
    return schema.McpServerStdio(name=name, command=server.command, args=server.args, env=env)


def _read(kind: type[M], data: Mapping[str, object]) -> M | None:
    try:
        return kind.model_validate(data)
    except (ValidationError, RecursionError):
        return None


def _request(key: str, method: str, params: BaseModel) -> Line:
    return jsonrpc.request(key, AGENT_METHODS.get(method, method), serialize_params(params))


def _decision(request: str, option: str | None) -> Line:
    """Return the answer to a permission request; None cancels it."""
    outcome = {"outcome": "cancelled"} if option is None else {"outcome": "selected", "optionId": option}
    return jsonrpc.reply(request, {"outcome": outcome})


def _error_text(error: Mapping[str, object]) -> str:
    """Return the message of an error, with the text in its data."""
    data = error.get("data")
    more = text(data) or text(record(data).get("message")) or text(record(data).get("details"))
    return ": ".join(part for part in (text(error.get("message")), more) if part) or "an error without a message"
