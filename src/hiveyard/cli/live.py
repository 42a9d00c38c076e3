"""Follow events, and start the daemon again when it ends meanwhile. No event is missed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli.connect import CannotStart, connect
from hiveyard.core.errors import DaemonUnreachable

ATTEMPTS = 5
"""Times in a row that a daemon may end before it sends an event."""


def live(id: str | None, *, after: int = 0, raw: bool = False, types: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the events of a task or session, or of all (None), after a sequence number, until no more can come. Raises
    DaemonUnreachable when no daemon stays."""
    failures = 0
    path, query = ("/v1/events", {"type": types}) if id is None else (f"/v1/tasks/{quoted(id)}/events", {})
    while True:
        try:
            for event in connect().stream("GET", path, after=after, follow=True, raw=raw, **query):
                after, failures = event["seq"], 0
                yield event
            return
        except DaemonUnreachable as error:
            failures = _retry(failures, error)


def ask(method: str, path: str, body: object = None) -> Any:
    """Return the answer to a request that may be repeated."""
    failures = 0
    while True:
        try:
            return connect().call(method, path, body)
        except DaemonUnreachable as error:
            failures = _retry(failures, error)


def _retry(failures: int, error: DaemonUnreachable) -> int:
    if failures == ATTEMPTS or isinstance(error, CannotStart):
        raise error
    click.echo("the daemon has ended; starting it again, the work continues", err=True)
    time.sleep(0.2 * (failures + 1))
    return failures + 1
