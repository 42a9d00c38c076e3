"""Format tables, money, times and sizes for a terminal; without colors elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from hiveyard.kit.figures import count, dollars, size, span
from hiveyard.kit.text import one_line

__all__ = ["age", "count", "ids", "money", "plain", "size", "span", "stat", "status", "summary", "table", "tokens"]
_LONGEST = 4096
STATUS_COLORS = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def plain(found: Any) -> Any:
    """Return the daemon's answer without terminal control sequences: a session may come from a stranger."""
    if isinstance(found, str):
        return one_line(found, _LONGEST)
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return [plain(one) for one in found] if isinstance(found, list) else found


def ids(found: Sequence[dict[str, Any]]) -> None:
    """Print ids, one on a line, for other commands."""
    for one in found:
        click.echo(one["id"])


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print a table. On a terminal, rows are cut to its width."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    click.echo(click.style(_row(header, widths), bold=True))
    for row in rows:
        line = _row(row, widths)
        click.echo(line[: shutil.get_terminal_size().columns] if sys.stdout.isatty() else line)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def age(at: float | None) -> str:
    """Return the time since `at`: `4s`, `12m`, `3h`, `5d`."""
    if at is None:
        return "-"
    return span(max(0.0, time.time() - at))


def money(usage: dict[str, Any]) -> str:
    """Return the cost in dollars, with four decimals below $1."""
    return dollars(usage.get("cost_usd"))


def tokens(usage: dict[str, Any]) -> str:
    """Return `7.8k in (5.1k cached), 20 out`."""
    cached = usage["cache_read_tokens"] + usage["cache_write_tokens"]
    total = usage["input_tokens"] + cached
    return f"{count(total)} in{f' ({count(cached)} cached)' if cached else ''}, {count(usage['output_tokens'])} out"


def status(task: dict[str, Any]) -> str:
    return click.style(task["status"], fg=STATUS_COLORS.get(task["status"]))


def stat(task: dict[str, Any]) -> str:
    """Return the size of a task's changes: `3 files, +12 -4`."""
    diff = task["diffstat"]
    if not diff["files"]:
        return "no changes"
    return f"{diff['files']} file{'s' * (diff['files'] != 1)}, +{diff['insertions']} -{diff['deletions']}"


def summary(task: dict[str, Any]) -> None:
    """Print a task with its result, and the commands to type next."""
    task = plain(task)
    click.echo()
    click.echo(f"{status(task)}  {click.style(task['slug'], bold=True)}  ({task['id']})")
    if task["error"]:
        click.echo(f"  why       {one_line(task['error']['message'], 400)}")
        if task["error"]["hint"]:
            click.echo(f"  try       {task['error']['hint']}")
    if task.get("waits_for"):
        click.echo(f"  waits     {task['waits_for']}")
    if task["branch"]:
        commits = task["commits"]
        click.echo(f"  branch    {task['branch']}  ({commits} commit{'s' * (commits != 1)}, {stat(task)})")
    if task["patch"]:
        click.echo(f"  patch     {task['patch']}")
    if task["provider"]:
        click.echo(f"  machine   {task['provider']} (tier {task['tier']})")
    usage = task["usage"]
    click.echo(f"  model     {usage['requests']} requests, {tokens(usage)}, {money(usage)}")
    click.echo("  time      " + ", ".join(f"{name} {span(seconds)}" for name, seconds in task["timings"].items()))
    if task["commits"]:
        click.echo(f"  next      hv diff {task['slug']}   hv apply {task['slug']}")
