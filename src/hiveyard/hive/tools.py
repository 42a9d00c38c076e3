"""The tools that members call: what each takes, and what it does. The protocol is in `mcp_server.py`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hiveyard.core.errors import NotAllowed, SessionNotRunning
from hiveyard.core.parsing import parsed
from hiveyard.hive.asks import AskRequest, answer_text, end_of
from hiveyard.hive.frame import framed
from hiveyard.hive.hive import MANAGER, Control, Hive, Threads
from hiveyard.hive.mailbox import MessageRequest
from hiveyard.hive.names import OPERATOR
from hiveyard.hive.reminders import ReminderRequest
from hiveyard.store.hive_views import MemberRow, ReminderRow
from hiveyard.store.views import AskRow

WAIT_LIMIT = 180.0


class _Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The arguments of a tool."""


class NoInput(_Input, frozen=True, kw_only=True):
    pass


class SendInput(_Input, frozen=True, kw_only=True):
    to: Annotated[list[str], Meta(description="names of members, or `all`, or `operator`")]
    text: str
    reply_to: Annotated[str, Meta(description="the id of the message that this answers")] = ""
    priority: Annotated[
        Literal["normal", "urgent"], Meta(description="an urgent message does not wait for the end of a turn")
    ] = "normal"
    files: Annotated[list[str], Meta(description="absolute paths of files in your machine, sent with it")] = []


class RecvInput(_Input, frozen=True, kw_only=True):
    wait_seconds: Annotated[float, Meta(ge=0, le=WAIT_LIMIT, description="how long to wait if there is none")] = 0.0


class AskInput(_Input, frozen=True, kw_only=True):
    question: str
    options: Annotated[list[str], Meta(description="possible answers; none: any text is an answer")] = []
    multi: Annotated[bool, Meta(description="several options may be chosen")] = False
    to: Annotated[str, Meta(description="`operator`, or the name of a member")] = OPERATOR
    ttl_seconds: Annotated[float | None, Meta(description="after this time the question expires")] = None


class AnswerInput(_Input, frozen=True, kw_only=True):
    id: Annotated[str, Meta(description="the id of the question")]
    answer: Annotated[list[str], Meta(description="the chosen options, by their text or number; or one text")]


class ReminderInput(_Input, frozen=True, kw_only=True):
    text: str
    at: Annotated[str | None, Meta(description="when, for instance 2030-01-31T12:00:00Z")] = None
    in_: Annotated[float | None, Meta(description="in how many seconds")] = msgspec.field(default=None, name="in")
    every: Annotated[float | None, Meta(description="again after each so many seconds, 60 or more")] = None


class CancelInput(_Input, frozen=True, kw_only=True):
    id: str


class NapInput(_Input, frozen=True, kw_only=True):
    seconds: float


class NoteInput(_Input, frozen=True, kw_only=True):
    note: Annotated[str, Meta(description="what you work on, in one line")]


class MemberInput(_Input, frozen=True, kw_only=True):
    name: Annotated[str, Meta(description="the name of the member")]


class LogsInput(MemberInput, frozen=True, kw_only=True):
    lines: Annotated[int, Meta(ge=1, le=200, description="how many lines")] = 50


class Call(NamedTuple):
    """A call of a tool by a member."""

    hive: Hive
    caller: MemberRow
    input: Any
    now: float

    @property
    def control(self) -> Control:
        """The power over other members. Raises SessionNotRunning."""
        if self.hive.control is None:
            raise SessionNotRunning("the daemon has not reached the members yet", hint="try again in a moment")
        return self.hive.control


class Tool(NamedTuple):
    """A tool: its description for models, the type of its arguments, and what it does. It returns a text. Some only the
    manager may call."""

    description: str
    input: type[_Input]
    act: Callable[[Call], Awaitable[str]]
    for_manager: bool = False

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the arguments."""
        schema: dict[str, Any] = msgspec.json.schema(self.input)["$defs"][self.input.__name__]
        return {"properties": {}, **schema} | {"title": self.input.__name__.removesuffix("Input")}


async def call(hive: Hive, session: str, name: str, arguments: object, now: float) -> str:
    """Call a tool for the member whose session it is. Raises NotAllowed, BadInput and the errors of the tool."""
    caller = await hive.caller(session)
    tool = TOOLS[name]
    if tool.for_manager and caller.role != MANAGER:
        raise NotAllowed(
            f"{caller.name} is no manager: only a manager may call {name}", hint="send the manager a message"
        )
    return await tool.act(Call(hive, caller, parsed(arguments, tool.input, name), now))


async def _send(call: Call) -> str:
    given = call.input
    files = await call.hive.read_files(call.caller, given.files)
    request = MessageRequest(
        to=given.to, text=given.text, reply_to=given.reply_to, priority=given.priority, files=files
    )
    sent = await call.hive.mailbox.send(call.caller.name, request)
    return "\n".join(f"sent {one.id} to {one.to}, thread {one.thread}" for one in sent)


async def _recv(call: Call) -> str:
    messages = await call.hive.receive(call.caller, call.input.wait_seconds)
    if not messages:
        return "no message came"
    roles = {peer.name: peer.role for peer in await call.hive.peers(call.caller)}
    return framed(messages, roles, call.now).prompt


async def _peers(call: Call) -> str:
    peers = await call.hive.peers(call.caller)
    return _json(peers) if peers else "the hive has no other member"


async def _whoami(call: Call) -> str:
    me, settings = call.caller, call.hive.settings
    operator = f"{settings.operator} ({settings.pronouns})"
    return _json({"name": me.name, "role": me.role, "note": me.note, "operator": operator})


async def _ask(call: Call) -> str:
    given = call.input
    request = AskRequest(
        question=given.question, options=given.options, multi=given.multi, to=given.to, ttl_seconds=given.ttl_seconds
    )
    id = await call.hive.asks.open(call.caller.name, request)
    return f"question {id} is open; the answer will start a turn of yours"


async def _answer(call: Call) -> str:
    ask = await call.hive.asks.answer(call.input.id, call.caller.name, call.input.answer)
    return f"answered {ask.id}: {answer_text(ask)}"


async def _open_threads(call: Call) -> str:
    return _json(_shown(await call.hive.open_threads(call.caller)))


async def _remind(call: Call) -> str:
    given = call.input
    request = ReminderRequest(text=given.text, at=given.at, in_=given.in_, every=given.every)
    return _json(_reminder(await call.hive.reminders.set(call.caller.name, request)))


async def _reminders(call: Call) -> str:
    return _json([_reminder(row) for row in await call.hive.reminders.of(call.caller.session)])


async def _cancel_reminder(call: Call) -> str:
    await call.hive.reminders.cancel(call.caller.session, call.input.id)
    return f"cancelled {call.input.id}"


async def _nap(call: Call) -> str:
    await call.hive.nap(call.caller, call.input.seconds)
    return "end your turn now: until then only the operator's messages reach you"


async def _note_status(call: Call) -> str:
    await call.hive.note(call.caller, call.input.note)
    return "noted"


async def _logs(call: Call) -> str:
    lines = await call.control.last_lines(call.input.name, call.input.lines)
    return "\n".join(lines) if lines else "its transcript is empty"


async def _wake(call: Call) -> str:
    await call.control.wake(call.input.name, call.caller.name)
    return f"{call.input.name} is awake, or will be when there is room"


async def _start(call: Call) -> str:
    await call.control.start(call.input.name, call.caller.name)
    return f"{call.input.name} starts when there is room"


async def _stop(call: Call) -> str:
    await call.control.stop(call.input.name, call.caller.name)
    return f"{call.input.name} is stopped; its mail waits"


async def _restart(call: Call) -> str:
    await call.control.restart(call.input.name, call.caller.name)
    return f"{call.input.name} starts again when there is room"


TOOLS = {
    "send": Tool("Write to members or to the operator.", SendInput, _send),
    "recv": Tool("Take the messages that came meanwhile. Each is given to you once.", RecvInput, _recv),
    "peers": Tool("List the other members, with their roles and what they do.", NoInput, _peers),
    "whoami": Tool("Say who you are, and for whom you work.", NoInput, _whoami),
    "ask": Tool("Put a question to the operator or to a member. Returns at once.", AskInput, _ask),
    "answer": Tool("Answer a question that was put to you. The first answer counts.", AnswerInput, _answer),
    "open_threads": Tool("List what is open: questions, messages, reminders.", NoInput, _open_threads),
    "remind": Tool("Set a reminder, which will start a turn of yours.", ReminderInput, _remind),
    "reminders": Tool("List your reminders.", NoInput, _reminders),
    "cancel_reminder": Tool("Cancel a reminder.", CancelInput, _cancel_reminder),
    "nap": Tool("Take no messages for some time, but the operator's.", NapInput, _nap),
    "note_status": Tool("Tell the others what you work on.", NoteInput, _note_status),
    "logs": Tool("Show the last lines of a member's transcript.", LogsInput, _logs, for_manager=True),
    "wake": Tool("Wake a member that is asleep.", MemberInput, _wake, for_manager=True),
    "start": Tool("Start a member that you stopped.", MemberInput, _start, for_manager=True),
    "stop": Tool("Stop a member; its mail waits until it is started.", MemberInput, _stop, for_manager=True),
    "restart": Tool("Stop a member and start it again, in its conversation.", MemberInput, _restart, for_manager=True),
}


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()


def _shown(threads: Threads) -> dict[str, object]:
    return {
        "your questions": [_question(ask) for ask in threads.asked],
        "questions to you": [_question(ask) for ask in threads.to_answer],
        "messages that wait": threads.waiting,
        "reminders": [_reminder(row) for row in threads.reminders],
    }


def _question(ask: AskRow) -> dict[str, object]:
    options: Sequence[str] = [f"{option.id}. {option.name}" for option in ask.options]
    told = {"id": ask.id, "kind": ask.kind, "from": ask.asker, "to": ask.target, "question": ask.message}
    return {**told, "options": options, "state": ask.state if ask.answer is None else end_of(ask)}


def _reminder(row: ReminderRow) -> dict[str, object]:
    return {"id": row.id, "text": row.text, "due_at": row.due_at, "every": row.every}
