"""Names of tasks and sessions on the command line, with what the shell may offer for them."""

from __future__ import annotations

from typing import Any

import click

from hiveyard.cli.connect import connect
from hiveyard.core.errors import HiveyardError

OFFERED = 200
"""Most of each, the newest, that a shell is offered."""


def tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The slugs that begin so. A key that is pressed starts no daemon and shows no error."""
    return [task["slug"] for task in _newest("tasks") if task["slug"].startswith(incomplete)]


def sessions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The names that begin so."""
    return [session["name"] for session in _newest("sessions") if session["name"].startswith(incomplete)]


def works(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return sessions(ctx, param, incomplete) + tasks(ctx, param, incomplete)


def _newest(what: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = connect(start=False).call("GET", f"/v1/{what}", all=True, limit=OFFERED)
    except HiveyardError:
        return []
    return found


TASK = click.argument("task", shell_complete=tasks)
SESSION = click.argument("session", shell_complete=sessions)
ONLY_SESSION = click.argument("session", metavar="[SESSION]", required=False, shell_complete=sessions)
SESSIONS = click.argument("sessions", nargs=-1, required=True, metavar="SESSION...", shell_complete=sessions)
WORK = click.argument("work", metavar="ID", shell_complete=works)
ONLY = click.argument("work", metavar="[ID]", required=False, shell_complete=works)
WORKS = click.argument("works", nargs=-1, metavar="ID...", shell_complete=works)
