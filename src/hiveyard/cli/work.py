"""Find a task or a session by its name."""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from hiveyard.api.client import ApiError, quoted
from hiveyard.cli.connect import connect
from hiveyard.core.errors import BadInput, NotFound

CANDIDATES = 20
"""The number of candidates that an error lists."""


class Work(NamedTuple):
    """A task or a session. `found` is the daemon's view of it."""

    is_session: bool
    found: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.found["id"])


def only_candidate(verb: str, *, sessions_only: bool = False) -> str:
    """Return the id of the only task or session, and print on stderr which it is. Raises BadInput if there is none, or
    several, which it lists."""
    client = connect()
    found = client.call("GET", "/v1/sessions", all=not sessions_only)
    if sessions_only:
        found = [session for session in found if session["status"] == "running"]
    else:
        found += client.call("GET", "/v1/tasks", all=True)
    names = [one.get("name") or one["slug"] for one in found]
    if len(found) == 1:
        click.echo(f"{names[0]}  ({found[0]['id']})", err=True)
        return str(found[0]["id"])
    what = "running session" if sessions_only else "task or session"
    if not found:
        raise BadInput(f"there is no {what} yet; hv {verb} takes an ID", hint='hv spawn . "what to do"')
    more = f" and {len(names) - CANDIDATES} more" if len(names) > CANDIDATES else ""
    raise BadInput(
        f"hv {verb} needs an ID, one of: {', '.join(names[:CANDIDATES])}{more}", hint=f"hv {verb} {names[0]}"
    )


def find(ref: str) -> Work:
    """Return the session or task of this name. Raises ApiError with the code `not_found`."""
    return request_either(ref, ("GET", ""), ("GET", ""))


def request_either(ref: str, of_session: tuple[str, str], of_task: tuple[str, str]) -> Work:
    """Send a request (its method and the end of its path) about a session, else about a task; return the answer."""
    client = connect()
    try:
        return Work(True, client.call(of_session[0], f"/v1/sessions/{quoted(ref)}{of_session[1]}"))
    except ApiError as error:
        if error.code != NotFound.code:
            raise
    return Work(False, client.call(of_task[0], f"/v1/tasks/{quoted(ref)}{of_task[1]}"))
