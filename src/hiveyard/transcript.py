"""Give events their meaning for people: what a line of a transcript is, and its words.

The terminal and the page share this, and differ only in how they fold and color it. It knows events as JSON has them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from hiveyard.kit.figures import counted, span
from hiveyard.kit.text import one_line, printable

Body = dict[str, Any]
Kind = Literal["note", "warning", "failure", "prompt", "text", "thinking", "call", "result", "edit", "output", "mail"]
_CLIPPED = re.compile(r"\n\[(\d+) more characters\]\Z")
"""The end of an event's text that the journal has clipped (core/events/body.py)."""


class Entry(NamedTuple):
    """A part of a transcript. `line` is its one line, `body` its longer text: both as they came, to be cleaned when
    they are shown. `clipped` says how much of the body the journal does not have. `call` joins a tool's result and its
    edits to the call; `ask` is the id of a question."""

    kind: Kind
    line: str = ""
    body: str = ""
    clipped: str = ""
    call: str = ""
    failed: bool = False
    ask: str = ""


def entries(event: dict[str, Any]) -> list[Entry]:
    """Return the parts of a transcript that stand for an event; none for one that matters to programs only."""
    body = event["body"]
    if body["type"] == "result.collected" and event["turn"] is None:
        return []  # of a session that goes on: nothing was committed there
    render = _ENTRIES.get(body["type"])
    return render(body) if render else []


def clean(text: str) -> list[str]:
    """Return the printable lines of `text`. Each is cleaned alone: an escape sequence without an end must not swallow
    the lines behind it."""
    return [printable(line) for line in text.rstrip("\n").split("\n")] if text.strip("\n") else []


def without_protocol(lines: list[str]) -> list[str]:
    """Return lines without those of JSON: they are an agent program's own protocol."""
    return [line for line in lines if not line.startswith('{"')]


Render = Callable[[Body], list[Entry]]


def _noted(words: Callable[[Body], str]) -> Render:
    return lambda body: [Entry("note", words(body))]


def _warned(words: Callable[[Body], str]) -> Render:
    return lambda body: [Entry("warning", words(body))]


def _failure(body: Body) -> list[Entry]:
    return [Entry("failure", body["failure"]["message"])]


def _message(body: Body) -> list[Entry]:
    return [Entry("warning", body.get("message", ""))]


def _long(kind: Kind, field: str = "text") -> Render:
    def render(body: Body) -> list[Entry]:
        text, clipped = _unclipped(body.get(field, ""))
        line = body.get("path", "")
        return [Entry(kind, line, text, clipped, call=body.get("call", ""), failed=bool(body.get("is_error")))]

    return render


def _started(body: Body) -> list[Entry]:
    words = [word for word in (body.get("program", ""), body.get("model", "")) if word]
    return [Entry("note", "agent: " + " ".join(words))] if words else []


def _turn_ended(body: Body) -> list[Entry]:
    return [Entry("note", f"the turn was {body['outcome']}")] if body["outcome"] == "cancelled" else []


def _collected(body: Body) -> list[Entry]:
    return [Entry("note", "the agent's uncommitted changes were committed")] if body.get("leftover") else []


def _question(body: Body) -> list[Entry]:
    ask = body.get("ask", "")
    command = f" (hv answer {ask} allow|deny)" if ask else ""
    return [Entry("warning", f"waits for you: {body['message']}{command}", ask=ask)]


def given(answer: Body) -> str:
    """Return an answer in one line: its options, its text, or whether it allows."""
    options = answer.get("options") or ([answer["option"]] if answer.get("option") else [])
    if not options and not answer.get("request") and answer.get("message"):
        return one_line(answer["message"], 80)
    return one_line(" ".join(options), 80) or ("allow" if answer["allow"] else "deny")


def _mail(words: Callable[[Body], str]) -> Render:
    return lambda body: [Entry("mail", words(body))]


HIVE: dict[str, Render] = {
    "member.joined": _noted(lambda b: f"{b['name']} joined the hive"),
    "member.left": _noted(lambda b: f"{b['name']} left the hive"),
    "member.asleep": _noted(lambda b: f"{b['name']} sleeps"),
    "member.stopped": _noted(lambda b: f"{b['name']} was stopped"),
    "member.crashed": _warned(lambda b: f"{b['name']} ended unasked: {b['reason']}"),
    "member.woken": _noted(lambda b: f"{b['name']} was woken by {b.get('by')}"),
    "member.napping": _noted(lambda b: f"{b['name']} naps"),
    "member.noted": _noted(lambda b: f"{b['name']}: {b['note']}"),
    "message.sent": _mail(lambda b: f"{b['sender']} to {b['to']}: {b['text']} ({b['message']})"),
    "message.held": _warned(lambda b: f"message {b['message']} is held: {b['reason']} (hv answer {b['ask']} go-on)"),
    "message.dropped": _noted(lambda b: f"message {b['message']} was dropped"),
    "ask.opened": _warned(lambda b: f"{b['asker']} asks {b['to']}: {b['question']} (hv answer {b['ask']} ...)"),
    "ask.expired": _noted(lambda b: f"nobody answered {b['ask']} in time"),
    "ask.withdrawn": _noted(lambda b: f"the question {b['ask']} was withdrawn"),
    "reminder.set": _noted(lambda b: f"a reminder was set: {b['text']}"),
}
"""How the events of the hive are shown."""


def _changed(body: Body) -> list[Entry]:
    """Render a change of the session's request; long values are only named."""
    said = [f"the budget is now ${body['budget_usd']:.2f}"] if body.get("budget_usd") is not None else []
    said += [f"the {name} is now {body[name]}" for name in ("model", "image") if body.get(name) is not None]
    said += ["the system text has changed"] if body.get("system") is not None else []
    names = (("tool servers", "mcp"), ("variables", "env"))
    said += [f"its {what} are now {', '.join(body[field])}" for what, field in names if body.get(field)]
    return [Entry("note", words) for words in said]


def _unclipped(text: str) -> tuple[str, str]:
    """Split off the note that the journal puts at the end of a clipped text."""
    if match := _CLIPPED.search(text):
        return text[: match.start()], counted(int(match[1]), "more character")
    return text, ""


_placed = _noted(lambda b: f"machine: {b['provider']} (tier {b['tier']}); {b['why']}")
_ENTRIES: dict[str, Render] = {
    "progress": _noted(lambda b: b["message"]),
    "notice": _message,
    "task.assigned": _placed,
    "task.cancel_asked": _noted(lambda b: "stopping the agent"),
    "machine.ready": _noted(lambda b: f"machine {b['machine']} ready in {span(b.get('seconds', 0.0))}"),
    "machine.failed": _failure,
    "session.placed": _placed,
    "session.running": _noted(lambda b: "the session runs"),
    "session.paused": _noted(lambda b: "paused"),
    "session.unpaused": _noted(lambda b: "continued"),
    "session.changed": _changed,
    "session.budget_set": _noted(lambda b: f"the budget is now ${b['dollars']:.2f}"),
    "session.stopped": _noted(lambda b: f"the session stopped: {b['reason']}"),
    "session.failed": _failure,
    "session.prepared": _noted(lambda b: f"branch {b['branch']} from {b['base'][:12]}"),
    "turn.started": _started,
    "turn.ended": _turn_ended,
    "agent.prompted": lambda b: [Entry("prompt", b["text"])],
    "agent.asked": _question,
    "ask.answered": _noted(lambda b: f"answered: {given(b)}"),
    "live.steered": _noted(lambda b: f"added: {b['text']}"),
    "session.model_chosen": _noted(lambda b: f"the model is now {b['model']}"),
    **HIVE,
    "agent.text": _long("text"),
    "agent.thinking": _long("thinking"),
    "agent.tool_called": lambda b: [Entry("call", b["summary"], call=b.get("call", ""))],
    "agent.tool_returned": _long("result", "output"),
    "agent.edited": _long("edit", "diff"),
    "agent.error": _message,
    "agent.retrying": _warned(lambda b: f"retrying the model (attempt {b['attempt']}): {b.get('message')}"),
    "agent.rate_limited": _message,
    "agent.permission_denied": _warned(lambda b: f"{b['tool']} was denied: {b.get('message', '')}"),
    "agent.output": _long("output"),
    "model.failed": _failure,
    "door.refused": _warned(lambda b: f"the door refused {b['what']}: {b['reason']}"),
    "budget.exhausted": _warned(lambda b: f"the budget of ${b['budget_usd']:.2f} is spent (${b['spent_usd']:.4f})"),
    "result.collected": _collected,
}
