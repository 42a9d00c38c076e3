"""`hv snapshot`, `hv snapshots`, `hv fork`, `hv rewind` and `hv compare`."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.live import ask
from hiveyard.cli.names import SESSION, SESSIONS
from hiveyard.cli.options import JSON, read_prompt
from hiveyard.cli.spawn import wait_until_running
from hiveyard.kit.text import one_line

_OUTCOMES = {"passed": "green", "failed": "red"}


@click.command(short_help="Take a snapshot of a session.")
@SESSION
@click.option("--name", help="The snapshot's name (default: s1, s2, ...).")
@JSON
def snapshot(session: str, name: str | None, as_json: bool) -> None:
    """Take a snapshot of a running session, to rewind to or to fork from. On a provider that keeps memory (qemu) it has
    memory and processes; on others it has the files and the agent's conversation. The session continues."""
    taken = connect().call("POST", f"/v1/sessions/{quoted(session)}/snapshots", {"name": name})
    if as_json:
        click.echo(json.dumps(taken))
        return
    click.echo(f"{_kind(taken)}, {show.size(taken['size'])}, paused for {show.span(taken['seconds'])}", err=True)
    click.echo(taken["name"])


@click.command(short_help="List or remove snapshots of a session.")
@SESSION
@click.option("--remove", "names", multiple=True, metavar="SNAPSHOT", help="Remove this snapshot; may be repeated.")
@JSON
def snapshots(session: str, names: tuple[str, ...], as_json: bool) -> None:
    """List the snapshots of a session, the oldest first. SNAPSHOT is a name or an id."""
    client, path = connect(), f"/v1/sessions/{quoted(session)}/snapshots"
    if names:
        removed = [client.call("DELETE", f"{path}/{quoted(one)}")["id"] for one in names]
        click.echo(json.dumps(removed) if as_json else "\n".join(removed))
        return
    found = client.call("GET", path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    show.table([_row(one) for one in show.plain(found)], ["NAME", "ID", "AFTER", "KEEPS", "AGE", "SIZE", "PAUSED"])


@click.command(short_help="Fork a session into several.")
@SESSION
@click.option("-n", "--count", type=click.IntRange(1), help="The number of children (default: one for each -m).")
@click.option("--from", "source", metavar="SNAPSHOT", help="Start from this snapshot (default: the current state).")
@click.option(
    "-m",
    "--message",
    "--prompt",
    "messages",
    multiple=True,
    metavar="TEXT",
    help="The next prompt: once for all children, or once for each. - is stdin.",
)
@click.option("--name", help="The children's name; the second and later ones get -2, -3, ...")
@JSON
def fork(
    session: str, count: int | None, source: str | None, messages: tuple[str, ...], name: str | None, as_json: bool
) -> None:
    """Make new sessions that continue from the current state of this one, each with its own files, branch, machine and
    share of the budget. If the provider keeps memory (qemu), their agents continue in the middle of a turn; otherwise
    they resume the conversation. Print the ids of the children."""
    prompts = [read_prompt(message, None) for message in messages]
    body = {"count": count, "snapshot": source, "instructions": prompts, "name": name}
    forked = connect().call("POST", f"/v1/sessions/{quoted(session)}/fork", body)
    if as_json:
        click.echo(json.dumps(forked))
        return
    if forked["notice"]:
        click.echo(f"· {forked['notice']}", err=True)
    click.echo("\n".join(forked["children"]))


@click.command(short_help="Go back to a snapshot.")
@SESSION
@click.argument("point", metavar="SNAPSHOT")
@click.option("--force", is_flag=True, help="Rewind even if a user is attached, whose terminal is then detached.")
@JSON
def rewind(session: str, point: str, force: bool, as_json: bool) -> None:
    """Return a session to a snapshot: its files and conversation, and with a live snapshot its memory and processes.
    Later snapshots stay, so that you can go forward again. Work since the last snapshot is lost. Wait until the
    session runs."""
    client, path = connect(), f"/v1/sessions/{quoted(session)}"
    before = client.call("GET", path)
    client.call("POST", f"{path}/rewind", {"snapshot": point, "force": force})
    wait_until_running(before, after=before["last_seq"])
    found = ask("GET", f"/v1/sessions/{before['id']}")
    click.echo(json.dumps(found) if as_json else f"{found['name']} continues from {point}")


@click.command(short_help="Compare sessions side by side.")
@SESSIONS
@JSON
def compare(sessions: tuple[str, ...], as_json: bool) -> None:
    """Show sessions side by side: their changes, the tests that their agents ran, time, tokens and cost."""
    found = connect().call("GET", "/v1/comparison", session=list(sessions))
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    found = show.plain(found)
    show.table([[label, *map(value, found)] for label, value in _LINES], ["", *(one["name"] for one in found)])
    _files(found)
    for one in found:
        if one["tests"]:
            click.echo(f"\n{click.style(one['name'], bold=True)} ran")
        for run in one["tests"]:
            outcome = click.style(run["outcome"], fg=_OUTCOMES.get(run["outcome"]))
            click.echo(
                f"  {outcome}  {one_line(run['command'], 120)}" + (f"  ×{run['times']}" if run["times"] > 1 else "")
            )
        if one["notice"]:
            click.echo(f"  note: {one_line(one['notice'], 300)}")


_LINES: list[tuple[str, Any]] = [
    ("status", lambda one: one["status"]),
    ("branch", lambda one: one["branch"] or "-"),
    ("commits", lambda one: str(one["commits"])),
    ("changes", show.stat),
    ("tests", lambda one: _tests(one["tests"])),
    ("turns", lambda one: str(one["turns"])),
    ("time", lambda one: show.span(one["seconds"])),
    ("tokens", lambda one: show.tokens(one["usage"])),
    ("cost", lambda one: show.money(one["usage"])),
]


def _tests(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return "none seen"
    last = runs[-1]["outcome"]
    return f"{last} ({sum(run['outcome'] == 'passed' for run in runs)} of {len(runs)} passed)"


def _files(found: list[dict[str, Any]]) -> None:
    """Print each file that a session changed, with its line counts in each session."""
    changed: dict[str, dict[str, str]] = {}
    for one in found:
        for file in one["files"]:
            binary = file["insertions"] is None
            changed.setdefault(file["path"], {})[one["id"]] = (
                "binary" if binary else f"+{file['insertions']} -{file['deletions']}"
            )
    if changed:
        click.echo()
        rows = [[one_line(path, 80), *(by.get(one["id"], "") for one in found)] for path, by in sorted(changed.items())]
        show.table(rows, ["FILE", *(one["name"] for one in found)])


def _kind(one: dict[str, Any]) -> str:
    return "memory, processes and files" if one["live"] else "files and conversation"


def _row(one: dict[str, Any]) -> list[str]:
    after = f"turn {one['after_turn']}" if one["after_turn"] else "the start"
    during = f", in turn {one['turn']}" if one["turn"] else ""
    paused = show.span(one["seconds"])
    return [
        one["name"],
        one["id"],
        after + during,
        _kind(one),
        show.age(one["created_at"]),
        show.size(one["size"]),
        paused,
    ]
