"""`hv rm`: remove tasks and sessions, by name or by age, with everything that belongs to them."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.names import WORKS
from hiveyard.cli.options import DURATION, JSON
from hiveyard.cli.problems import PartlyDone
from hiveyard.cli.work import find
from hiveyard.core.errors import BadInput, HiveyardError, MachineNotReady

_OVER = ("stopped", "failed")


@click.command(short_help="Remove tasks and sessions.")
@WORKS
@click.option("-f", "--force", is_flag=True, help="Also remove those that run; their work is lost.")
@click.option(
    "--finished", is_flag=True, help="Remove all tasks that are over, and all sessions that are stopped or failed."
)
@click.option("--older-than", type=DURATION, help="With --finished: only those that ended so long ago: 12h, 7d.")
@click.option("--dry-run", is_flag=True, help="Only print what would be removed.")
@JSON
def rm(
    works: tuple[str, ...], force: bool, finished: bool, older_than: float | None, dry_run: bool, as_json: bool
) -> None:
    """Remove tasks and sessions and everything that belongs to them: machine, branch on the host, events, files.

    Nothing is removed if one of the names is wrong."""
    if finished == bool(works):
        raise BadInput("give either names or --finished", hint="hv rm ID, or hv rm --finished")
    if older_than is not None and not finished:
        raise BadInput("--older-than needs --finished", hint="hv rm --finished --older-than 7d")
    targets = _finished(older_than or 0.0) if finished else {work.id: work.found for work in map(find, works)}
    removed = []
    for id, found in targets.items():
        try:
            if dry_run:
                _check(found, force=force)
            else:
                connect().call("DELETE", f"/v1/tasks/{id}", force=force)
            removed.append(id)
        except HiveyardError as error:
            raise PartlyDone(error, removed) from error
        if not as_json:
            click.echo(f"{id}  {_name(found)}, {_state(found)}" if dry_run else id)
    if as_json:
        click.echo(json.dumps(removed))


def _finished(age: float) -> dict[str, dict[str, Any]]:
    """Return tasks and sessions that have been over for at least so many seconds, by id."""
    client, before = connect(), time.time() - age
    tasks, sessions = client.call("GET", "/v1/tasks", all=True), client.call("GET", "/v1/sessions", all=True)
    return {found["id"]: found for found in (*tasks, *sessions) if _is_over(found) and _ended_at(found) <= before}


def _check(found: dict[str, Any], *, force: bool) -> None:
    """Raise MachineNotReady, with the daemon's message, for one that the daemon would not remove."""
    if not force and not _is_over(found):
        name, end = _name(found), "hv cancel" if _is_task(found) else "hv stop"
        raise MachineNotReady(f"{name} is {found['status']}", hint=f"{end} {name}, or hv rm --force {name}")


def _state(found: dict[str, Any]) -> str:
    return f"over since {show.age(_ended_at(found))}" if _is_over(found) else str(found["status"])


def _is_over(found: dict[str, Any]) -> bool:
    return found["ended_at"] is not None if _is_task(found) else found["status"] in _OVER


def _ended_at(found: dict[str, Any]) -> float:
    return float(found["ended_at"] if _is_task(found) else found["last_event_at"])


def _name(found: dict[str, Any]) -> str:
    return str(found["slug"] if _is_task(found) else found["name"])


def _is_task(found: dict[str, Any]) -> bool:
    return "slug" in found
