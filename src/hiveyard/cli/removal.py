"""`hv rm`: tasks and sessions, by name or by age, with all that belongs to them."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import click

from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.names import WORKS
from hiveyard.cli.options import JSON
from hiveyard.cli.problems import Halfway
from hiveyard.cli.work import find
from hiveyard.core.errors import BadInput, HiveyardError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Age(click.ParamType[float]):
    """A time that has passed, in seconds: `90s`, `30m`, `12h`, `7d`, `2w`."""

    name = "AGE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d{1,6})([smhdw])", str(value))
        if match is None:
            self.fail(f"{value!r} is no age: try 12h or 7d")
        return float(int(match[1]) * _UNITS[match[2]])


@click.command(short_help="Remove tasks and sessions.")
@WORKS
@click.option("-f", "--force", is_flag=True, help="Also what runs; its work is lost.")
@click.option("--finished", is_flag=True, help="All tasks that are over, and sessions that are stopped or failed.")
@click.option("--older-than", type=Age(), help="Of those, only what ended so long ago: 12h, 7d.")
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
            gone.append(id if dry_run else connect().call("DELETE", f"/v1/tasks/{id}", force=force)["id"])
        except HiveyardError as error:
            raise Halfway(error, gone) from error
        if not as_json:
            click.echo(f"{id}  {_name(found)}, over since {show.age(_ended_at(found))}" if dry_run else id)
    if as_json:
        click.echo(json.dumps(gone))


def _finished(age: float) -> dict[str, dict[str, Any]]:
    """What is over for at least that many seconds, by its id."""
    client, before = connect(), time.time() - age
    tasks = [task for task in client.call("GET", "/v1/tasks", all=True) if task["ended_at"] is not None]
    sessions = client.call("GET", "/v1/sessions", all=True)
    over = [session for session in sessions if session["status"] in ("stopped", "failed")]
    return {found["id"]: found for found in (*tasks, *over) if _ended_at(found) <= before}


def _ended_at(found: dict[str, Any]) -> float:
    return float(found["ended_at"] if "ended_at" in found else found["last_event_at"])


def _name(found: dict[str, Any]) -> str:
    return str(found["slug"] if "slug" in found else found["name"])
