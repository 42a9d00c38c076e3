"""`hv ps`, `hv show`, `hv logs`, `hv events` and `hv cancel`."""

from __future__ import annotations

import base64
import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show as looks
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import live
from hiveyard.cli.names import ONLY, TASK, works
from hiveyard.cli.options import FORMAT, JSON, QUIET
from hiveyard.cli.run import watch
from hiveyard.cli.sessions import summary
from hiveyard.cli.work import find, only_candidate
from hiveyard.kit.text import decode, one_line, printable

ALREADY_ENDED = 1
"""The exit code of `hv cancel` for a task that had ended before."""


@click.command(short_help="List tasks.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also list tasks that are over.")
@click.option("-n", "--limit", type=int, metavar="N", help="List only the newest N.")
@QUIET
@FORMAT
@JSON
def ps(everything: bool, limit: int | None, quiet: bool, form: str | None, as_json: bool) -> None:
    """List tasks that are not over, the newest first."""
    query = {"all": everything} | ({} if limit is None else {"limit": limit})
    tasks = connect().call("GET", "/v1/tasks", **query)
    if as_json or form == "json":
        click.echo(json.dumps(tasks, indent=2))
        return
    if quiet:
        looks.ids(tasks)
        return
    rows = [
        [
            task["id"],
            task["slug"],
            task["status"],
            task["agent"],
            task["provider"] or "-",
            looks.age(task["created_at"]),
            looks.stat(task) if task["ended_at"] else "-",
            looks.money(task["usage"]),
            one_line(task.get("waits_for") or task["repo"], 60),
        ]
        for task in looks.plain(tasks)
    ]
    looks.table(rows, ["ID", "SLUG", "STATUS", "AGENT", "PROVIDER", "AGE", "CHANGES", "COST", "REPO"])


@click.command(short_help="Show one task or session.")
@ONLY
@JSON
def show(work: str | None, as_json: bool) -> None:
    """Show one task or session. ID is its id, the start of its id, or its name. Without ID, it takes the only one."""
    is_session, found = find(only_candidate("show") if work is None else work)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    found = looks.plain(found)
    if is_session:
        summary(found)
    else:
        looks.summary(found)
        click.echo(f"  agent     {found['agent']} {found['program'] or ''} {found['model'] or ''}".rstrip())
        click.echo(f"  repo      {found['repo']} at {(found['base'] or '-')[:12]}")
        click.echo(f"  prompt    {one_line(found['prompt'], 400)}")


@click.command(short_help="Show what an agent did.")
@ONLY
@click.option("-f", "--follow", is_flag=True, help="Continue until the task is over, or the session stops.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines.")
@JSON
def logs(work: str | None, follow: bool, tail: int | None, as_json: bool) -> None:
    """Show what an agent did, as it was shown while it happened. Without ID, it takes the only task or session."""
    is_session, found = find(only_candidate("logs") if work is None else work)
    seen = 0 if tail is None else _print_tail(found, tail, as_json=as_json)
    if follow and not as_json and not is_session:
        watch(found, quiet=False, cancels=False, after=seen)
        looks.summary(found)
        return
    for _, lines in _rendered(found, after=seen, follow=follow, as_json=as_json):
        for line in lines:
            click.echo(line)


def _print_tail(found: dict[str, Any], count: int, *, as_json: bool) -> int:
    """Print the last lines so far, and return the number of the event that they end with."""
    last: deque[str] = deque(maxlen=count)
    seen = 0
    for seq, lines in _rendered(found, after=0, follow=False, as_json=as_json):
        seen = seq
        last.extend(lines)
    for line in last:
        click.echo(line)
    return seen


def _rendered(found: dict[str, Any], *, after: int, follow: bool, as_json: bool) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the lines of each event of a task or session."""
    raw = transcript.shows_all(found) and not as_json
    for event in _events(found["id"], after=after, follow=follow, raw=raw):
        yield event["seq"], [json.dumps(event)] if as_json else transcript.lines(event, complete=raw)


def _events(ref: str, *, after: int, follow: bool, raw: bool) -> Iterator[dict[str, Any]]:
    if follow:
        return live(ref, after=after, raw=raw)
    return connect().stream("GET", f"/v1/tasks/{quoted(ref)}/events", after=after, raw=raw)


@click.command(short_help="Print events as JSON lines.")
@click.argument("work", metavar="[ID]", required=False, shell_complete=works)
@click.option("-f", "--follow", is_flag=True, help="Continue until no more events can come.")
@click.option("-t", "--type", "types", multiple=True, metavar="PREFIX", help="Only events whose type begins like this.")
@click.option("--raw", is_flag=True, help="Print the agent's own output lines instead, unchanged.")
@click.option("--after", type=int, default=0, metavar="SEQ", help="Only events after this sequence number.")
@click.option("--json", "as_json", is_flag=True, hidden=True, help="Events are JSON anyway.")
def events(work: str | None, follow: bool, types: tuple[str, ...], raw: bool, after: int, as_json: bool) -> None:
    """Print the events of a task or session as JSON lines; without ID, those of all of them. `-f` then goes on until
    Ctrl-C."""
    found = live(None, after=after, raw=raw, types=types) if follow and work is None else None
    if work is None:
        found = found or connect().stream("GET", "/v1/events", after=after, raw=raw, type=types)
    for event in found or _events(str(work), after=after, follow=follow, raw=raw):
        if not event["body"]["type"].startswith(types or ("",)):
            continue
        if not raw:
            click.echo(json.dumps(event))
        elif "raw" in event:
            _print_raw(base64.b64decode(event["raw"]))


def _print_raw(lines: bytes) -> None:
    """Print an agent's raw lines: unchanged into a file or a pipe, without escapes on a terminal."""
    if sys.stdout.isatty():
        for line in decode(lines).split("\n"):
            click.echo(printable(line))
        return
    sys.stdout.buffer.write(lines + b"\n")
    sys.stdout.buffer.flush()


@click.command(short_help="Stop a task's agent, and collect its work.")
@TASK
@JSON
def cancel(task: str, as_json: bool) -> int:
    """Ask the agent to stop, wait until it has ended, and collect its work. The exit code is 1 if the task had already
    ended."""
    client = connect()
    before = client.call("GET", f"/v1/tasks/{quoted(task)}")
    if before["ended_at"] is not None:
        click.echo(json.dumps(before) if as_json else f"{before['slug']} has already ended: {before['status']}")
        return ALREADY_ENDED
    found = client.call("POST", f"/v1/tasks/{quoted(task)}/cancel")
    watch(found, quiet=True)
    click.echo(json.dumps(found) if as_json else f"{found['slug']}: {found['status']}")
    return 0
