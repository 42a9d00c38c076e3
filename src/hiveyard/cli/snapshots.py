"""Verbs of time and of parallel worlds: keep a session as it is, go back there, go on from there several times."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.live import ask
from hiveyard.cli.names import SESSION, SESSIONS
from hiveyard.cli.options import JSON
from hiveyard.cli.spawn import come_up
from hiveyard.kit.text import one_line

_OUTCOMES = {"passed": "green", "failed": "red"}


@click.command(short_help="Keep a session as it is.")
@SESSION
@click.option("--name", help="What to call it (default: s1, s2, ...).")
@JSON
def snapshot(session: str, name: str | None, as_json: bool) -> None:
    """Keep a running session as it is, to go back to or to fork from: with memory and processes where its provider can
    (qemu), else its files and the agent's conversation. The session goes on."""
    taken = connect().call("POST", f"/v1/sessions/{quoted(session)}/snapshots", {"name": name})
    if as_json:
        click.echo(json.dumps(taken))
        return
    click.echo(f"{_kind(taken)}, {show.size(taken['size'])}, stood still for {show.span(taken['seconds'])}", err=True)
    click.echo(taken["name"])


@click.command(short_help="List or remove snapshots of a session.")
@SESSION
@click.option("--remove", "gone", multiple=True, metavar="SNAPSHOT", help="Remove this one.")
@JSON
def snapshots(session: str, gone: tuple[str, ...], as_json: bool) -> None:
    """List the snapshots of a session, the oldest first. SNAPSHOT is a name or an id."""
    client, path = connect(), f"/v1/sessions/{quoted(session)}/snapshots"
    if gone:
        removed = [client.call("DELETE", f"{path}/{quoted(one)}")["id"] for one in gone]
        click.echo(json.dumps(removed) if as_json else "\n".join(removed))
        return
    found = client.call("GET", path)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    show.table([_row(one) for one in show.plain(found)], ["NAME", "ID", "AFTER", "KEEPS", "AGE", "SIZE", "STOOD STILL"])


@click.command(short_help="Go on from a session several times.")
@SESSION
@click.option("-n", "--count", type=click.IntRange(1), help="How many (default: one for each -m).")
@click.option("--from", "source", metavar="SNAPSHOT", help="Begin where the session stood then (default: now).")
@click.option(
    "-m",
    "--message",
    "--prompt",
    "messages",
    multiple=True,
    metavar="TEXT",
    help="What to do; one for each, or for all.",
)
@click.option("--name", help="The children's name, with -2, -3, ... behind it.")
@JSON
def fork(
    session: str, count: int | None, source: str | None, messages: tuple[str, ...], name: str | None, as_json: bool
) -> None:
    """Make new sessions that go on where this one stands, each with its own files, branch, machine and share of the
    budget. Where the provider keeps memory (qemu) their agents go on mid-thought, else they resume the conversation.
    Prints the ids of the children."""
    asked = {"count": count, "snapshot": source, "instructions": list(messages), "name": name}
    made = connect().call("POST", f"/v1/sessions/{quoted(session)}/fork", asked)
    if as_json:
        click.echo(json.dumps(made))
        return
    if made["notice"]:
        click.echo(f"· {made['notice']}", err=True)
    click.echo("\n".join(made["children"]))


@click.command(short_help="Go back to a snapshot.")
@SESSION
@click.argument("point", metavar="SNAPSHOT")
@click.option("--force", is_flag=True, help="Also with somebody at its terminal, who is thrown out.")
@JSON
def rewind(session: str, point: str, force: bool, as_json: bool) -> None:
    """Have a session stand again where it stood: its files and conversation, and with a live snapshot its memory and
    processes. Snapshots taken since stay, so that you can go forward again; what was not kept is lost. Waits until it
    runs there."""
    client, path = connect(), f"/v1/sessions/{quoted(session)}"
    before = client.call("GET", path)
    client.call("POST", f"{path}/rewind", {"snapshot": point, "force": force})
    come_up(before, after=before["last_seq"])
    found = ask("GET", f"/v1/sessions/{before['id']}")
    click.echo(json.dumps(found) if as_json else f"{found['name']} goes on from {point}")


@click.command(short_help="Show sessions side by side.")
@SESSIONS
@JSON
def compare(sessions: tuple[str, ...], as_json: bool) -> None:
    """Show what each session changed, the tests that its agent ran, its time, tokens and money, side by side."""
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
    """Each file that any of them changed, with what each did to it."""
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
    stood = show.span(one["seconds"])
    return [
        one["name"],
        one["id"],
        after + during,
        _kind(one),
        show.age(one["created_at"]),
        show.size(one["size"]),
        stood,
    ]
