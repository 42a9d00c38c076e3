"""Render a task's or session's events as lines for a terminal.

Nothing is left out silently: where text is shortened, the line says how much is missing and which command shows it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import click

from hiveyard.kit.figures import counted
from hiveyard.kit.text import decode, one_line, printable
from hiveyard.transcript import HIVE, Entry, clean, entries, given, without_protocol

__all__ = ["HIVE", "given", "lines", "shows_all"]
NOTE_COLUMNS = 400
"""Characters of a note, a prompt or an error."""
OUTPUT_LINES, OUTPUT_COLUMNS = 40, 400
TOOL_LINES, TOOL_COLUMNS = 8, 200
DIFF_LINES = 40


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
    if complete and "raw" in event and event["body"]["type"] == "agent.output":
        event = {**event, "body": {**event["body"], "text": decode(base64.b64decode(event["raw"]))}}
    limits = Limits(event["session"], complete=complete)
    return [line for entry in entries(event) for line in _RENDER[entry.kind](entry, limits)]


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
    return flat[:NOTE_COLUMNS] + "…" + limits.missing(counted(len(flat) - NOTE_COLUMNS, "more character"), raw=False)


def _note(entry: Entry, limits: Limits) -> list[str]:
    return [_dim("· " + _line(entry.line, limits))]


def _marked(mark: str, color: str) -> Callable[[Entry, Limits], list[str]]:
    return lambda entry, limits: [click.style(mark, fg=color) + _line(entry.line, limits)]


def _text(entry: Entry, limits: Limits) -> list[str]:
    shown = clean(entry.body.rstrip())
    return [*shown, *([limits.missing(entry.clipped)] if entry.clipped else [])]


def _thinking(entry: Entry, limits: Limits) -> list[str]:
    shown = [_dim("  " + line) for line in clean(entry.body.strip())]
    return [*shown, *([limits.missing(entry.clipped)] if entry.clipped else [])]


def _result(entry: Entry, limits: Limits) -> list[str]:
    shown = _folded(clean(entry.body.strip()), entry.clipped, limits, TOOL_LINES, TOOL_COLUMNS, indent="  ")
    if entry.failed:
        shown.insert(0, click.style("  the tool failed", fg="red"))
    return shown


def _edit(entry: Entry, limits: Limits) -> list[str]:
    shown = [click.style("✎ ", fg="cyan") + _line(entry.line, limits)]
    diff = clean(entry.body)
    for line in diff[:DIFF_LINES]:
        color = {"+": "green", "-": "red"}.get(line[:1])
        shown.append("  " + (click.style(line, fg=color) if color else _dim(line)))
    amounts = [counted(len(diff) - DIFF_LINES, "more line")] if len(diff) > DIFF_LINES else []
    if entry.clipped:
        amounts.append(entry.clipped)
    return [*shown, *([limits.missing(*amounts, raw=bool(entry.clipped))] if amounts else [])]


def _output(entry: Entry, limits: Limits) -> list[str]:
    """Lines without another meaning. Those of JSON are an agent program's own protocol: they are only counted."""
    if limits.complete:
        text = entry.body + (f"\n[{entry.clipped}]" if entry.clipped else "")
        return [printable(line) for line in text.split("\n")]
    found = clean(entry.body)
    plain = without_protocol(found)
    shown = _folded(plain, entry.clipped, limits, OUTPUT_LINES, OUTPUT_COLUMNS)
    if len(plain) < len(found):
        shown.append(limits.missing(counted(len(found) - len(plain), "line") + " of JSON not shown"))
    return shown


def _folded(found: list[str], clipped: str, limits: Limits, most: int, columns: int, indent: str = "") -> list[str]:
    """The first `most` lines up to a width, then how much is missing."""
    shown = [_dim(indent + line[:columns] + ("…" if len(line) > columns else "")) for line in found[:most]]
    wide = sum(max(0, len(line) - columns) for line in found[:most])
    amounts = [counted(len(found) - most, "more line")] if len(found) > most else []
    if wide:
        amounts.append(counted(wide, "more character") + " in long lines")
    if clipped:
        amounts.append(clipped)
    return [*shown, *([limits.missing(*amounts)] if amounts else [])]


_RENDER: dict[str, Callable[[Entry, Limits], list[str]]] = {
    "note": _note,
    "warning": _marked("! ", "yellow"),
    "failure": _marked("! ", "red"),
    "prompt": _marked("❯ ", "magenta"),
    "text": _text,
    "thinking": _thinking,
    "call": _marked("▸ ", "cyan"),
    "result": _result,
    "edit": _edit,
    "output": _output,
    "mail": _marked("✉ ", "blue"),
}
