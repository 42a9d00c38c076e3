"""`hv rm`: tasks and sessions, by name or by age, with all that belongs to them."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.names import WORKS
from hiveyard.cli.options import DURATION, JSON
from hiveyard.cli.problems import Halfway
from hiveyard.cli.work import find
from hiveyard.core.errors import BadInput, HiveyardError, MachineNotReady

_OVER = ("stopped", "failed")


@click.command(short_help="Remove tasks and sessions.")
@WORKS
@click.option("-f", "--force", is_flag=True, help="Also what runs; its work is lost.")
@click.option("--finished", is_flag=True, help="All tasks that are over, and sessions that are stopped or failed.")
@click.option("--older-than", type=DURATION, help="Of those, only what ended so long ago: 12h, 7d.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@JSON
def rm(
    works: tuple[str, ...], force: bool, finished: bool, older_than: float | None, dry_run: bool, as_json: bool
) -> None:
    """Remove tasks and sessions and all that belongs to them: machine, branch on the host, events, files.

    Before anything is removed every name must stand for something."""
    if finished == bool(works):
        raise BadInput("say what to remove, or --finished, and not both", hint="hv rm ID, or hv rm --finished")
    if older_than is not None and not finished:
        raise BadInput("--older-than chooses among what is --finished", hint="hv rm --finished --older-than 7d")
    doomed = _finished(older_than or 0.0) if finished else {work.id: work.found for work in map(find, works)}
    gone = []
    for id, found in doomed.items():
        try:
            if dry_run:
                _check(found, force=force)
            else:
                connect().call("DELETE", f"/v1/tasks/{id}", force=force)
            gone.append(id)
        except HiveyardError as error:
            raise Halfway(error, gone) from error
        if not as_json:
            click.echo(f"{id}  {_name(found)}, {_standing(found)}" if dry_run else id)
    if as_json:
        click.echo(json.dumps(gone))


def _finished(age: float) -> dict[str, dict[str, Any]]:
    """Return tasks and sessions that have been over for at least so many seconds, by id."""
    client, before = connect(), time.time() - age
    tasks, sessions = client.call("GET", "/v1/tasks", all=True), client.call("GET", "/v1/sessions", all=True)
    return {found["id"]: found for found in (*tasks, *sessions) if _is_over(found) and _ended_at(found) <= before}


def _check(found: dict[str, Any], *, force: bool) -> None:
    """Raises MachineNotReady for what the daemon would not remove, in its words."""
    if not force and not _is_over(found):
        name, end = _name(found), "hv cancel" if _is_task(found) else "hv stop"
        raise MachineNotReady(f"{name} is {found['status']}", hint=f"{end} {name}, or hv rm --force {name}")


def _standing(found: dict[str, Any]) -> str:
    return f"over since {show.age(_ended_at(found))}" if _is_over(found) else str(found["status"])


def _is_over(found: dict[str, Any]) -> bool:
    return found["ended_at"] is not None if _is_task(found) else found["status"] in _OVER


def _ended_at(found: dict[str, Any]) -> float:
    return float(found["ended_at"] if _is_task(found) else found["last_event_at"])


def _name(found: dict[str, Any]) -> str:
    return str(found["slug"] if _is_task(found) else found["name"])


def _is_task(found: dict[str, Any]) -> bool:
    return "slug" in found
