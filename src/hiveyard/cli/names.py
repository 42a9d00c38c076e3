"""Names of tasks on the command line, with what the shell may offer for them."""

from __future__ import annotations

import click

from hiveyard.cli.connect import connect
from hiveyard.core.errors import HiveyardError

OFFERED = 200
"""Most tasks, the newest, that a shell is offered."""


def slugs(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The slugs that begin so. A key that is pressed starts no daemon and shows no error."""
    try:
        found = connect(start=False).call("GET", "/v1/tasks", all=True, limit=OFFERED)
    except HiveyardError:
        return []
    return [task["slug"] for task in found if task["slug"].startswith(incomplete)]


TASK = click.argument("task", shell_complete=slugs)
TASKS = click.argument("tasks", nargs=-1, required=True, metavar="TASK...", shell_complete=slugs)
