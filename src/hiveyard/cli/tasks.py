"""Verbs that look at tasks and end them."""

from __future__ import annotations

import base64
import json
import sys

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show as looks
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.names import TASK, TASKS
from hiveyard.cli.options import JSON
from hiveyard.cli.run import watch
from hiveyard.kit.text import one_line


@click.command(short_help="List tasks.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also tasks that are over.")
@click.option("-n", "--limit", type=int, metavar="N", help="The newest N of them.")
@JSON
def ps(everything: bool, limit: int | None, as_json: bool) -> None:
    """List tasks that are not over, the newest first."""
    query = {"all": everything} | ({} if limit is None else {"limit": limit})
    tasks = connect().call("GET", "/v1/tasks", **query)
    if as_json:
        click.echo(json.dumps(tasks, indent=2))
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
        for task in tasks
    ]
    looks.table(rows, ["ID", "SLUG", "STATUS", "AGENT", "PROVIDER", "AGE", "CHANGES", "COST", "REPO"])


@click.command(short_help="Show one task.")
@TASK
@JSON
def show(task: str, as_json: bool) -> None:
    """Show one task: TASK is an id, the start of one, or a slug."""
    found = connect().call("GET", f"/v1/tasks/{quoted(task)}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    looks.summary(found)
    click.echo(f"  agent     {found['agent']} {found['program'] or ''} {found['model'] or ''}".rstrip())
    click.echo(f"  repo      {found['repo']} at {(found['base'] or '-')[:12]}")
    click.echo(f"  prompt    {one_line(found['prompt'], 400)}")


@click.command(short_help="Show what an agent did.")
@TASK
@click.option("-f", "--follow", is_flag=True, help="Stay until the task is over.")
@JSON
def logs(task: str, follow: bool, as_json: bool) -> None:
    """Show what an agent did, as it was shown while it happened."""
    client = connect()
    found = client.call("GET", f"/v1/tasks/{quoted(task)}")
    if follow and not as_json:
        watch(found, quiet=False, asks=False)
        looks.summary(found)
        return
    for event in client.stream("GET", f"/v1/tasks/{quoted(found['id'])}/events", follow=follow):
        for line in [json.dumps(event)] if as_json else transcript.lines(event):
            click.echo(line)


@click.command(short_help="Print a task's events as JSON lines.")
@TASK
@click.option("-f", "--follow", is_flag=True, help="Go on with new events until the task is over.")
@click.option("--raw", is_flag=True, help="Print the agent's own output lines instead, as they came.")
@click.option("--after", type=int, default=0, metavar="SEQ", help="Only events after this sequence number.")
@click.option("--json", "as_json", is_flag=True, hidden=True, help="Events are JSON anyway.")
def events(task: str, follow: bool, raw: bool, after: int, as_json: bool) -> None:
    """Print a task's events as JSON lines."""
    path = f"/v1/tasks/{quoted(task)}/events"
    for event in connect().stream("GET", path, after=after, follow=follow, raw=raw):
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


@click.command(short_help="Remove tasks.")
@TASKS
@click.option("-f", "--force", is_flag=True, help="Also when it is running; its work is lost.")
@JSON
def rm(tasks: tuple[str, ...], force: bool, as_json: bool) -> None:
    """Remove tasks and all that belongs to them: machine, branch on the host, events, files.

    Before anything is removed every name must stand for a task."""
    client = connect()
    found = [client.call("GET", f"/v1/tasks/{quoted(task)}")["id"] for task in tasks]
    gone = []
    for id in dict.fromkeys(found):
        gone.append(client.call("DELETE", f"/v1/tasks/{id}", force=force)["id"])
        if not as_json:
            click.echo(id)
    if as_json:
        click.echo(json.dumps(gone))
