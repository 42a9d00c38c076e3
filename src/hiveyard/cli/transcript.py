"""Render a task's or session's events as lines for a terminal.

Nothing is left out silently: where text is shortened, the line says how much is missing and which command shows it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from typing import Any

import click

from hiveyard.cli.show import span
from hiveyard.kit.text import decode, one_line, printable

Body = dict[str, Any]
Render = Callable[[Body, "Limits"], list[str]]

NOTE_COLUMNS = 400
"""Characters of a note, a prompt or an error."""
OUTPUT_LINES, OUTPUT_COLUMNS = 40, 400
TOOL_LINES, TOOL_COLUMNS = 8, 200
DIFF_LINES = 40
_CLIPPED = re.compile(r"\n\[(\d+) more characters\]\Z")
"""The end of an event's text that the journal has clipped (core/events/body.py)."""


class Limits:
    """How much of an event is shown, and the command that shows the rest. `complete` shows an agent's plain output
    completely, as the raw lines of its events have it."""

    def __init__(self, id: str, *, complete: bool = False) -> None:
        self.complete = complete
        self._id = id

    def missing(self, *amounts: str, raw: bool = True) -> str:
        """Return the line that stands for what is not shown."""
        command = f"hv events {self._id}" + (" --raw" if raw else "")
        return _dim(f"  [{', '.join(amounts)}: {command}]")


def lines(event: dict[str, Any], *, complete: bool = False) -> list[str]:
    """Return the lines of one event; no line for an event that matters to programs only. With `complete` the event has
    to be one of a raw stream."""
    body = event["body"]
    if body["type"] == "result.collected" and event["turn"] is None:
        return []  # of a session that goes on: nothing was committed there
    render = _RENDER.get(body["type"])
    if render is None:
        return []
    if complete and "raw" in event and body["type"] == "agent.output":
        body = {**body, "text": decode(base64.b64decode(event["raw"]))}
    return render(body, Limits(event["session"], complete=complete))


def shows_all(work: dict[str, Any]) -> bool:
    """Whether the output of a task or session is shown completely: the plain output of a command is its work."""
    return bool(work["agent"] == "command")


def _dim(text: str) -> str:
    return click.style(text, dim=True)


def _line(text: str, limits: Limits) -> str:
    """`text` on one line, with what is missing at its end."""
    flat = one_line(text, len(text))
    if len(flat) <= NOTE_COLUMNS:
        return flat
    return flat[:NOTE_COLUMNS] + "…" + limits.missing(_count(len(flat) - NOTE_COLUMNS, "more character"), raw=False)


def _note(text: str, limits: Limits) -> list[str]:
    return [_dim("· " + _line(text, limits))]


def _warning(text: str, limits: Limits) -> list[str]:
    return [click.style("! ", fg="yellow") + _line(text, limits)]


def _failure(body: Body, limits: Limits) -> list[str]:
    return [click.style("! ", fg="red") + _line(body["failure"]["message"], limits)]


def _message(body: Body, limits: Limits) -> list[str]:
    return _warning(body.get("message", ""), limits)


def _prompted(body: Body, limits: Limits) -> list[str]:
    return [click.style("❯ ", fg="magenta") + _line(body["text"], limits)]


def _clean(text: str) -> list[str]:
    """Return the printable lines of `text`. Each is cleaned alone: an escape sequence without an end must not swallow
    the lines behind it."""
    return [printable(line) for line in text.rstrip("\n").split("\n")] if text.strip("\n") else []


def _text(body: Body, limits: Limits) -> list[str]:
    text, clipped = _unclipped(body["text"])
    shown = _clean(text.rstrip())
    return [*shown, *([limits.missing(clipped)] if clipped else [])]


def _thinking(body: Body, limits: Limits) -> list[str]:
    text, clipped = _unclipped(body["text"])
    shown = [_dim("  " + line) for line in _clean(text.strip())]
    return [*shown, *([limits.missing(clipped)] if clipped else [])]


def _called(body: Body, limits: Limits) -> list[str]:
    return [click.style("▸ ", fg="cyan") + _line(body["summary"], limits)]


def _returned(body: Body, limits: Limits) -> list[str]:
    text, clipped = _unclipped(body.get("output", ""))
    shown = _folded(_clean(text.strip()), clipped, limits, TOOL_LINES, TOOL_COLUMNS, indent="  ")
    if body.get("is_error"):
        shown.insert(0, click.style("  the tool failed", fg="red"))
    return shown


def _edited(body: Body, limits: Limits) -> list[str]:
    shown = [click.style("✎ ", fg="cyan") + _line(body["path"], limits)]
    text, clipped = _unclipped(body.get("diff", ""))
    diff = _clean(text)
    for line in diff[:DIFF_LINES]:
        color = {"+": "green", "-": "red"}.get(line[:1])
        shown.append("  " + (click.style(line, fg=color) if color else _dim(line)))
    amounts = [_count(len(diff) - DIFF_LINES, "more line")] if len(diff) > DIFF_LINES else []
    if clipped:
        amounts.append(clipped)
    return [*shown, *([limits.missing(*amounts, raw=bool(clipped))] if amounts else [])]


def _output(body: Body, limits: Limits) -> list[str]:
    """Lines without another meaning. Those of JSON are an agent program's own protocol: they are only counted."""
    if limits.complete:
        return [printable(line) for line in body["text"].split("\n")]
    text, clipped = _unclipped(body["text"])
    found = _clean(text)
    plain = [line for line in found if not line.startswith('{"')]
    shown = _folded(plain, clipped, limits, OUTPUT_LINES, OUTPUT_COLUMNS)
    if len(plain) < len(found):
        shown.append(limits.missing(_count(len(found) - len(plain), "line") + " of JSON not shown"))
    return shown


def _folded(found: list[str], clipped: str, limits: Limits, most: int, columns: int, indent: str = "") -> list[str]:
    """The first `most` lines up to a width, then how much is missing."""
    shown = [_dim(indent + line[:columns] + ("…" if len(line) > columns else "")) for line in found[:most]]
    wide = sum(max(0, len(line) - columns) for line in found[:most])
    amounts = [_count(len(found) - most, "more line")] if len(found) > most else []
    if wide:
        amounts.append(_count(wide, "more character") + " in long lines")
    if clipped:
        amounts.append(clipped)
    return [*shown, *([limits.missing(*amounts)] if amounts else [])]


def _unclipped(text: str) -> tuple[str, str]:
    """Split off the note that the journal puts at the end of a clipped text."""
    if match := _CLIPPED.search(text):
        return text[: match.start()], _count(int(match[1]), "more character")
    return text, ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _started(body: Body, limits: Limits) -> list[str]:
    words = [body.get("program", ""), body.get("model", "")]
    return _note("agent: " + " ".join(word for word in words if word), limits) if any(words) else []


def _turn_ended(body: Body, limits: Limits) -> list[str]:
    return _note(f"the turn was {body['outcome']}", limits) if body["outcome"] == "cancelled" else []


def _collected(body: Body, limits: Limits) -> list[str]:
    return _note("the agent's uncommitted changes were committed", limits) if body.get("leftover") else []


def _question(body: Body) -> str:
    command = f" (hv answer {body['ask']} allow|deny)" if body.get("ask") else ""
    return f"waits for you: {body['message']}{command}"


def given(answer: Body) -> str:
    """Return an answer in one line: its options, its text, or whether it allows."""
    options = answer.get("options") or ([answer["option"]] if answer.get("option") else [])
    if not options and not answer.get("request") and answer.get("message"):
        return one_line(answer["message"], 80)
    return one_line(" ".join(options), 80) or ("allow" if answer["allow"] else "deny")


def _noted(words: Callable[[Body], str]) -> Render:
    return lambda body, limits: _note(words(body), limits)


def _warned(words: Callable[[Body], str]) -> Render:
    return lambda body, limits: _warning(words(body), limits)


def _mail(words: Callable[[Body], str]) -> Render:
    return lambda body, limits: [click.style("✉ ", fg="blue") + _line(words(body), limits)]


HIVE: dict[str, Render] = {
    "member.joined": _noted(lambda b: f"{b['name']} joined the hive"),
    "member.left": _noted(lambda b: f"{b['name']} left the hive"),
    "member.asleep": _noted(lambda b: f"{b['name']} sleeps"),
    "member.stopped": _noted(lambda b: f"{b['name']} was stopped"),
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


def _changed(body: Body, limits: Limits) -> list[str]:
    """Render a change of the session's request; long values are only named."""
    said = [f"the budget is now ${body['budget_usd']:.2f}"] if body.get("budget_usd") is not None else []
    said += [f"the {name} is now {body[name]}" for name in ("model", "image") if body.get(name) is not None]
    said += ["the system text has changed"] if body.get("system") is not None else []
    names = (("tool servers", "mcp"), ("variables", "env"))
    said += [f"its {what} are now {', '.join(body[field])}" for what, field in names if body.get(field)]
    return [line for words in said for line in _note(words, limits)]


_placed = _noted(lambda b: f"machine: {b['provider']} (tier {b['tier']}); {b['why']}")
_RENDER: dict[str, Render] = {
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
    "agent.prompted": _prompted,
    "agent.asked": _warned(_question),
    "ask.answered": _noted(lambda b: f"answered: {given(b)}"),
    "live.steered": _noted(lambda b: f"added: {b['text']}"),
    "session.model_chosen": _noted(lambda b: f"the model is now {b['model']}"),
    **HIVE,
    "agent.text": _text,
    "agent.thinking": _thinking,
    "agent.tool_called": _called,
    "agent.tool_returned": _returned,
    "agent.edited": _edited,
    "agent.error": _message,
    "agent.retrying": _warned(lambda b: f"retrying the model (attempt {b['attempt']}): {b.get('message')}"),
    "agent.rate_limited": _message,
    "agent.permission_denied": _warned(lambda b: f"{b['tool']} was denied: {b.get('message', '')}"),
    "agent.output": _output,
    "model.failed": _failure,
    "door.refused": _warned(lambda b: f"the door refused {b['what']}: {b['reason']}"),
    "budget.exhausted": _warned(lambda b: f"the budget of ${b['budget_usd']:.2f} is spent (${b['spent_usd']:.4f})"),
    "result.collected": _collected,
}
