"""`hv hive`: members, and what they do. Their messages are in `hive_mail.py`."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.hive_mail import log, mail, send
from hiveyard.cli.live import ask
from hiveyard.cli.options import DURATION, JSON, QUIET
from hiveyard.cli.spawn import session_options, session_request, wait_until_running
from hiveyard.core.errors import BadInput
from hiveyard.kit.names import new_id
from hiveyard.kit.text import one_line

_HEADER = ("NAME", "ROLE", "STATE", "AGENT", "MAIL", "ASKS", "REMINDERS", "TURNS", "COST", "DOES")
_MEMBERS = "/v1/hive/members"
NAME = click.argument("name")


@click.group()
def hive() -> None:
    """Let agents work together: members that are woken by their mail."""


for command in (send, mail, log):
    hive.add_command(command)


@hive.command("add")
@NAME
@click.argument("where", required=False, metavar="[REPO]")
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("--role", type=click.Choice(["member", "manager"]), default="member", help="What it is in the hive.")
@click.option(
    "--accept", "accepts", multiple=True, metavar="NAME", help="A member that may write to it (default: all)."
)
@click.option("--empty", is_flag=True, help="Give it an empty repository.")
@click.option("--terminal", is_flag=True, help="Run its agent at the program's own terminal, not live.")
@session_options
@JSON
def add(name: str, where: str | None, as_json: bool, empty: bool, **options: Any) -> None:
    """Add the member NAME, which works on a copy of REPO (default: here). PROMPT is its first message. It stays until
    `hv hive rm`: it works when something is in its mailbox, and sleeps when it has been idle for some time."""
    own = {key: options.pop(key) for key in ("role", "accepts", "terminal")}
    if empty and (where is not None or options["repo"] is not None):
        raise BadInput("--empty gives it a repository: name no other")
    request = session_request(where, options)
    if empty:
        del request["repo"]
    asked = {**request, "name": name, "id": new_id(), "role": own["role"], "terminal": own["terminal"]}
    if own["accepts"]:
        asked["accepts"] = list(own["accepts"])
    member = ask("POST", _MEMBERS, asked)
    wait_until_running(member["session"], after=0)
    _print(ask("GET", f"{_MEMBERS}/{quoted(name)}"), as_json)


@hive.command("ls")
@QUIET
@JSON
def ls(quiet: bool, as_json: bool) -> None:
    """List the members, with the mail that waits for them, their questions without an answer, and their reminders."""
    found = connect().call("GET", _MEMBERS)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    if quiet:
        for member in found:
            click.echo(member["name"])
        return
    show.table([_row(member) for member in show.plain(found)], _HEADER)


def _row(member: dict[str, Any]) -> list[str]:
    session = member["session"]
    return [
        member["name"],
        member["role"],
        member["state"],
        session["agent"],
        str(member["waiting"]) + (f" ({member['held']} held)" if member["held"] else ""),
        str(member["asks"]),
        str(member["reminders"]),
        str(session["turns"]),
        show.money(session["usage"]),
        one_line(member["note"] or (session["reason"] if member["state"] == "stopped" else ""), 80),
    ]


@hive.command("show")
@NAME
@JSON
def show_member(name: str, as_json: bool) -> None:
    """Show one member, and the commands to type next."""
    member = connect().call("GET", f"{_MEMBERS}/{quoted(name)}")
    if as_json:
        click.echo(json.dumps(member, indent=2))
        return
    member = show.plain(member)
    session = member["session"]
    click.echo(
        f"{member['state']}  {click.style(member['name'], bold=True)}, {member['role']}  (session {session['id']})"
    )
    if member["note"]:
        click.echo(f"  does       {one_line(member['note'], 400)}")
    if member["state"] == "stopped":
        click.echo(f"  why        {one_line(session['reason'], 400)}")
    accepts = "all" if member["accepts"] is None else ", ".join(member["accepts"]) or "nobody"
    click.echo(f"  takes mail from {accepts}")
    click.echo(f"  waiting    {member['waiting']} messages, {member['held']} held")
    click.echo(f"  open       {member['asks']} questions, {member['reminders']} reminders")
    click.echo(f"  agent      {session['agent']} {session['model'] or ''}".rstrip() + f", {session['turns']} turns")
    click.echo(f"  model      {session['usage']['requests']} requests, {show.money(session['usage'])}")
    click.echo(f"  next       hv hive mail {name}   hv logs {name}   hv hive send {name} TEXT")


@hive.command("rm")
@NAME
@click.option("-f", "--force", is_flag=True, help="Also remove one that runs; its work is lost.")
@JSON
def rm(name: str, force: bool, as_json: bool) -> None:
    """Remove a member with its session, its mail and its reminders."""
    gone = connect().call("DELETE", f"{_MEMBERS}/{quoted(name)}", force=force)
    click.echo(json.dumps(gone) if as_json else f"{name} left the hive")


@hive.command("wake")
@NAME
@JSON
def wake(name: str, as_json: bool) -> None:
    """End a member's sleep or nap."""
    _do(name, "wake", as_json)


@hive.command("nap")
@NAME
@click.argument("duration", type=DURATION)
@JSON
def nap(name: str, duration: float, as_json: bool) -> None:
    """Let a member take no messages for DURATION (10m, 2h), but yours."""
    _do(name, "nap", as_json, {"seconds": duration})


@hive.command("stop")
@NAME
@JSON
def stop(name: str, as_json: bool) -> None:
    """Stop a member, and keep its files. Its mail waits until `hv hive start`."""
    _do(name, "stop", as_json)


@hive.command("start")
@NAME
@JSON
def start(name: str, as_json: bool) -> None:
    """Start a member that was stopped; it goes on with its mail."""
    _do(name, "start", as_json)


def _do(name: str, verb: str, as_json: bool, body: object = None) -> None:
    _print(connect().call("POST", f"{_MEMBERS}/{quoted(name)}/{verb}", body), as_json)


def _print(member: dict[str, Any], as_json: bool) -> None:
    click.echo(json.dumps(member) if as_json else f"{member['name']}: {member['state']}")
