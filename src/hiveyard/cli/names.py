"""Arguments that name tasks and sessions, with their shell completion."""

from __future__ import annotations

from typing import Any

import click

from hiveyard.cli.connect import connect
from hiveyard.core.errors import HiveyardError

COMPLETIONS = 200
"""The number of tasks, and of sessions, that a shell is offered: the newest ones."""


def tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the slugs that begin with `incomplete`. Completion starts no daemon and prints no error."""
    return [task["slug"] for task in _newest("tasks") if task["slug"].startswith(incomplete)]


def sessions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return the names of sessions that begin with `incomplete`."""
    return [session["name"] for session in _newest("sessions") if session["name"].startswith(incomplete)]


def works(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return sessions(ctx, param, incomplete) + tasks(ctx, param, incomplete)


def _newest(what: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = connect(start=False).call("GET", f"/v1/{what}", all=True, limit=COMPLETIONS)
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
