"""A piece of work by its name: a task or a session."""

from __future__ import annotations

from typing import Any, NamedTuple

from hiveyard.api.client import ApiError, quoted
from hiveyard.cli.connect import connect
from hiveyard.core.errors import NotFound


class Work(NamedTuple):
    """`found` is what the daemon says of it."""

    is_session: bool
    found: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.found["id"])


def find(ref: str) -> Work:
    """The task or session that a person means. Raises NotFound's errors."""
    return either(ref, ("GET", ""), ("GET", ""))


def either(ref: str, of_session: tuple[str, str], of_task: tuple[str, str]) -> Work:
    """What the daemon says to a request (its method, and the end of its path) about a session, or about a task."""
    client = connect()
    try:
        return Work(True, client.call(of_session[0], f"/v1/sessions/{quoted(ref)}{of_session[1]}"))
    except ApiError as error:
        if error.code != NotFound.code:
            raise
    return Work(False, client.call(of_task[0], f"/v1/tasks/{quoted(ref)}{of_task[1]}"))
