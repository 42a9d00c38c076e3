"""Verbs that look at tasks and end them."""

from __future__ import annotations

import base64
import json
import sys
from collections import deque

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show as looks
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import live
from hiveyard.cli.names import ONLY, TASK, WORK
from hiveyard.cli.options import FORMAT, JSON, QUIET
from hiveyard.cli.run import watch
from hiveyard.cli.sessions import summary
from hiveyard.cli.work import find, only
from hiveyard.kit.text import one_line


@click.command(short_help="List tasks.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also tasks that are over.")
@click.option("-n", "--limit", type=int, metavar="N", help="The newest N of them.")
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
            one_line(task["repo"], 60),
        ]
        for task in looks.plain(tasks)
    ]
    looks.table(rows, ["ID", "SLUG", "STATUS", "AGENT", "PROVIDER", "AGE", "CHANGES", "COST", "REPO"])


@click.command(short_help="Show one task or session.")
@ONLY
@JSON
def show(work: str | None, as_json: bool) -> None:
    """Show one task or session: ID is an id, the start of one, or a name. Without it, the only one there is."""
    is_session, found = find(work or only("show"))
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
@click.option("-f", "--follow", is_flag=True, help="Stay until the task is over, or the session stops.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Begin with the last N lines.")
@JSON
def logs(work: str | None, follow: bool, tail: int | None, as_json: bool) -> None:
    """Show what an agent did, as it was shown while it happened. Without ID, of the only task or session there is."""
    is_session, found = find(work or only("logs"))
    seen = 0 if tail is None else _print_tail(found["id"], tail, as_json=as_json)
    if follow and not as_json and not is_session:
        watch(found, quiet=False, asks=False, after=seen)
        looks.summary(found)
        return
    path = f"/v1/tasks/{quoted(found['id'])}/events"
    for event in live(found["id"], after=seen) if follow else connect().stream("GET", path, after=seen):
        for line in [json.dumps(event)] if as_json else transcript.lines(event):
            click.echo(line)


def _print_tail(id: str, count: int, *, as_json: bool) -> int:
    """Print the last lines so far, and return the number of the event that they end with."""
    last: deque[str] = deque(maxlen=count)
    seen = 0
    for event in connect().stream("GET", f"/v1/tasks/{quoted(id)}/events"):
        seen = event["seq"]
        last.extend([json.dumps(event)] if as_json else transcript.lines(event))
    for line in last:
        click.echo(line)
    return seen


@click.command(short_help="Print events as JSON lines.")
@WORK
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until nothing is to come.")
@click.option("--raw", is_flag=True, help="Print the agent's own output lines instead, as they came.")
@click.option("--after", type=int, default=0, metavar="SEQ", help="Only events after this sequence number.")
@click.option("--json", "as_json", is_flag=True, hidden=True, help="Events are JSON anyway.")
def events(work: str, follow: bool, raw: bool, after: int, as_json: bool) -> None:
    """Print the events of a task or session as JSON lines."""
    path = f"/v1/tasks/{quoted(work)}/events"
    stream = connect().stream("GET", path, after=after, raw=raw)
    for event in live(work, after=after, raw=raw) if follow else stream:
        if not raw:
            click.echo(json.dumps(event))
        elif "raw" in event:
            sys.stdout.buffer.write(base64.b64decode(event["raw"]) + b"\n")
            sys.stdout.buffer.flush()


@click.command(short_help="Ask an agent to stop.")
@TASK
@JSON
def cancel(task: str, as_json: bool) -> None:
    """Ask an agent to stop and wait for its end; what it has done is collected."""
    client = connect()
    found = client.call("POST", f"/v1/tasks/{quoted(task)}/cancel")
    watch(found, quiet=True)
    click.echo(json.dumps(found) if as_json else f"{found['slug']}: {found['status']}")
