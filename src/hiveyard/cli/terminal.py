"""`hv attach`: a person's terminal, in a session's machine."""

from __future__ import annotations

import click

from hiveyard.api.client import quoted
from hiveyard.cli.attach import own_terminal, sit_down
from hiveyard.cli.connect import connect
from hiveyard.cli.names import ONLY_SESSION
from hiveyard.cli.work import only


@click.command(short_help="Sit down at a session's agent.")
@ONLY_SESSION
@click.option("--read-only", is_flag=True, help="Only look.")
def attach(session: str | None, read_only: bool) -> int:
    """Sit down at the agent's own terminal program. Ctrl-B D leaves, and the agent goes on. Several people may sit
    there at once. Without SESSION, at the only one that runs."""
    return show_agent(only("attach", sessions_only=True) if session is None else session, read_only=read_only)


def show_agent(session: str, *, read_only: bool = False) -> int:
    """Give this terminal to a session's agent; the exit code when the person has left."""
    path = f"/v1/sessions/{quoted(session)}/terminal"
    return sit_down(connect().call("POST", path, {"read_only": read_only, **own_terminal()})["argv"])
