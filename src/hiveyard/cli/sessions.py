"""`hv list`, `hv stop`, `hv pause` and `hv unpause`."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.names import SESSIONS
from hiveyard.cli.options import FORMAT, JSON, QUIET
from hiveyard.cli.problems import PartlyDone
from hiveyard.cli.run import watch
from hiveyard.cli.work import Work, find
from hiveyard.core.errors import HiveyardError
from hiveyard.kit.text import one_line

_HEADER = ("ID", "NAME", "REPO", "AGENT", "STATUS", "ACTIVITY", "AGE", "LAST", "TOKENS", "COST", "PORT", "WHY")
_COLORS = {"running": "green", "paused": "yellow", "failed": "red"}
_ACTIVITIES = {"waiting": "waiting for you"}


@click.command("list", short_help="List sessions.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also list sessions that failed.")
@click.option("--tasks", is_flag=True, help="Also list the sessions of tasks: hv ps lists only tasks.")
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="List only the newest N.")
@QUIET
@FORMAT
@JSON
def list_(everything: bool, tasks: bool, limit: int | None, quiet: bool, form: str | None, as_json: bool) -> None:
    """List sessions that run or can be resumed, the newest first. LAST is the time since the last event, PORT is the
    port for ssh, and WHY is why a session stopped."""
    query = {"all": everything, "tasks": tasks} | ({} if limit is None else {"limit": limit})
    found = connect().call("GET", "/v1/sessions", **query)
    if as_json or form == "json":
        click.echo(json.dumps(found, indent=2))
        return
    if quiet:
        show.ids(found)
        return
    found = show.plain(found)
    names = {session["id"]: session["name"] for session in found}
    show.table([_row(session, names) for session in found], _HEADER)


def _row(session: dict[str, Any], names: dict[str, str]) -> list[str]:
    usage, parent = session["usage"], session["parent"]
    return [
        session["id"],
        session["name"] + (f" (of {names.get(parent, parent)})" if parent else ""),
        one_line(session["repo"], 40),
        session["agent"],
        session["status"],
        activity(session),
        show.age(session["created_at"]),
        show.age(session["last_event_at"]),
        show.count(sum(usage[f"{kind}_tokens"] for kind in ("input", "cache_read", "cache_write", "output"))),
        show.money(usage),
        str(session["port"] or "-"),
        one_line(why(session), 80),
    ]


def activity(session: dict[str, Any]) -> str:
    """Return what a running session does at the moment."""
    doing: str = session["activity"]
    return _ACTIVITIES.get(doing, doing) if session["status"] == "running" else "-"


def why(session: dict[str, Any]) -> str:
    """Return why the session does not run."""
    error = session["error"]
    return str(session.get("waits_for") or (error["message"] if error else session["reason"]))


def summary(session: dict[str, Any]) -> None:
    """Print a session, and the commands to type next."""
    session = show.plain(session)
    name, usage = session["name"], session["usage"]
    status = click.style(session["status"], fg=_COLORS.get(session["status"]))
    click.echo(f"{status}  {click.style(name, bold=True)}  ({session['id']})")
    if why(session):
        click.echo(f"  why       {one_line(why(session), 400)}")
    if session["status"] == "running":
        click.echo(f"  activity  {activity(session)}, last event {show.age(session['last_event_at'])} ago")
    click.echo(f"  agent     {session['agent']} {session['model'] or ''}".rstrip() + f", {session['turns']} turns")
    click.echo(f"  repo      {session['repo']} at {(session['base'] or '-')[:12]}, branch {session['branch'] or '-'}")
    if session["parent"]:
        click.echo(f"  parent    {session['parent']}")
    if session["provider"]:
        click.echo(f"  machine   {session['provider']} (tier {session['tier']})")
    for port in session["ports"]:
        click.echo(f"  port      127.0.0.1:{port['host']} to {port['guest']}")
    click.echo(f"  model     {usage['requests']} requests, {show.tokens(usage)}, {show.money(usage)}")
    click.echo(f"  next      {_next(session)}")


def _next(session: dict[str, Any]) -> str:
    name = session["name"]
    return {
        "running": f"hv attach {name}   hv diff {name}   hv stop {name}",
        "paused": f"hv unpause {name}",
        "stopped": f"hv resume {name}   hv diff {name}   hv rm {name}",
        "failed": f"hv logs {name}   hv rm {name}",
    }.get(session["status"], f"hv logs -f {name}")


# --- machines --------------------------------------------------------------------------------------------------------


@click.command(short_help="Stop sessions, and keep their files.")
@SESSIONS
@JSON
def stop(sessions: tuple[str, ...], as_json: bool) -> None:
    """End the machines of sessions, and keep their files and conversations. A session that is already stopped is not an
    error. A task is cancelled: its work is collected."""
    _each(sessions, "stop", as_json=as_json)


@click.command(short_help="Freeze sessions, with their memory.")
@SESSIONS
@JSON
def pause(sessions: tuple[str, ...], as_json: bool) -> None:
    """Freeze the machines of sessions, with their memory; `hv unpause` lets them continue."""
    _each(sessions, "pause", as_json=as_json)


@click.command(short_help="Let frozen sessions continue.")
@SESSIONS
@JSON
def unpause(sessions: tuple[str, ...], as_json: bool) -> None:
    """Let the frozen machines of sessions continue."""
    _each(sessions, "unpause", as_json=as_json)


def _named(ref: str, action: str) -> Work:
    """Return a session, or a task for an action that tasks have, too."""
    if action == "stop":
        return find(ref)
    return Work(True, connect().call("GET", f"/v1/sessions/{quoted(ref)}"))


def _each(sessions: tuple[str, ...], action: str, *, as_json: bool) -> None:
    """Request an action on each session. Nothing is done if one of the names is wrong."""
    client = connect()
    works = {work.id: work for work in (_named(session, action) for session in sessions)}
    done = []
    for id, work in works.items():
        path = f"/v1/sessions/{id}/{action}" if work.is_session else f"/v1/tasks/{id}/cancel"
        try:
            done.append(client.call("POST", path))
            if not work.is_session:
                watch(done[-1], quiet=True)
        except HiveyardError as error:
            raise PartlyDone(error, done) from error
        if not as_json:
            click.echo(f"{done[-1].get('name') or done[-1]['slug']}: {done[-1]['status']}")
    if as_json:
        click.echo(json.dumps(done))
