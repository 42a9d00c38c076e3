"""Events as a person reads them while they happen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from hiveyard.cli.show import span
from hiveyard.kit.text import one_line, printable

Body = dict[str, Any]


def lines(event: dict[str, Any]) -> list[str]:
    """The lines of one event; none for what only programs care about."""
    body = event["body"]
    if body["type"] == "result.collected" and event["turn"] is None:
        return []  # of a session that goes on: nothing was committed there
    show = _SHOW.get(body["type"])
    return show(body) if show else []


def _dim(text: str) -> str:
    return click.style(text, dim=True)


def _note(text: str) -> list[str]:
    return [_dim("· " + one_line(text, 400))]


def _failure(body: Body) -> list[str]:
    return [click.style("! ", fg="red") + one_line(body["failure"]["message"], 400)]


def _text(body: Body) -> list[str]:
    return printable(body["text"]).rstrip().splitlines()


def _thinking(body: Body) -> list[str]:
    return [_dim("  " + line) for line in printable(body["text"]).strip().splitlines()]


def _called(body: Body) -> list[str]:
    return [click.style("▸ ", fg="cyan") + one_line(body["summary"], 300)]


def _returned(body: Body) -> list[str]:
    output = printable(body.get("output", "")).strip().splitlines()
    shown = [_dim("  " + line[:200]) for line in output[:8]]
    if len(output) > 8:
        shown.append(_dim(f"  [{len(output) - 8} more lines]"))
    if body.get("is_error"):
        shown.insert(0, click.style("  the tool failed", fg="red"))
    return shown


def _edited(body: Body) -> list[str]:
    shown = [click.style("✎ ", fg="cyan") + one_line(body["path"], 300)]
    for line in printable(body.get("diff", "")).splitlines()[:40]:
        colour = {"+": "green", "-": "red"}.get(line[:1])
        shown.append("  " + (click.style(line, fg=colour) if colour else _dim(line)))
    return shown


def _trouble(body: Body) -> list[str]:
    return [click.style("! ", fg="yellow") + one_line(body.get("message", ""), 400)]


def _output(body: Body) -> list[str]:
    """Lines without a meaning here. Those that are JSON are a program's own, for `hv events --raw`."""
    shown = [line for line in printable(body["text"]).rstrip().splitlines() if not line.startswith('{"')]
    return [_dim(line[:400]) for line in shown[:40]]


def _started(body: Body) -> list[str]:
    words = [body.get("program", ""), body.get("model", "")]
    return _note("agent: " + " ".join(word for word in words if word)) if any(words) else []


_SHOW: dict[str, Callable[[Body], list[str]]] = {
    "progress": lambda b: _note(b["message"]),
    "notice": lambda b: _trouble(b),
    "task.assigned": lambda b: _note(f"machine: {b['provider']} (tier {b['tier']}); {b['why']}"),
    "task.cancel_asked": lambda b: _note("stopping the agent"),
    "machine.ready": lambda b: _note(f"machine {b['machine']} ready in {span(b.get('seconds', 0.0))}"),
    "machine.failed": _failure,
    "session.placed": lambda b: _note(f"machine: {b['provider']} (tier {b['tier']}); {b['why']}"),
    "session.running": lambda b: _note("the session runs"),
    "session.paused": lambda b: _note("frozen"),
    "session.unpaused": lambda b: _note("goes on"),
    "session.budget_set": lambda b: _note(f"the budget is ${b['dollars']:.2f} now"),
    "session.stopped": lambda b: _note(f"the session stopped: {b['reason']}"),
    "session.failed": _failure,
    "session.prepared": lambda b: _note(f"branch {b['branch']} from {b['base'][:12]}"),
    "turn.started": _started,
    "turn.ended": lambda b: _note(f"the turn was {b['outcome']}") if b["outcome"] == "cancelled" else [],
    "agent.prompted": lambda b: [click.style("❯ ", fg="magenta") + one_line(b["text"], 400)],
    "agent.asked": lambda b: _trouble({"message": f"waits for you: {b['message']}"}),
    "agent.text": _text,
    "agent.thinking": _thinking,
    "agent.tool_called": _called,
    "agent.tool_returned": _returned,
    "agent.edited": _edited,
    "agent.error": _trouble,
    "agent.retrying": lambda b: _trouble({"message": f"trying the model again ({b['attempt']}): {b.get('message')}"}),
    "agent.rate_limited": _trouble,
    "agent.permission_denied": lambda b: _trouble({"message": f"{b['tool']} was denied: {b.get('message', '')}"}),
    "agent.output": _output,
    "model.failed": _failure,
    "door.refused": lambda b: _trouble({"message": f"the door refused {b['what']}: {b['reason']}"}),
    "budget.exhausted": lambda b: _trouble(
        {"message": f"the budget of ${b['budget_usd']:.2f} is spent (${b['spent_usd']:.4f})"}
    ),
    "result.collected": lambda b: _note("what the agent left uncommitted was committed") if b.get("leftover") else [],
}
