"""`hv wait`: return when tasks have ended, and when sessions need a prompt or have stopped."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from queue import Empty, SimpleQueue

import click

from hiveyard.cli.live import ask, live
from hiveyard.cli.names import WORKS
from hiveyard.cli.options import DURATION, JSON
from hiveyard.cli.work import Work, find
from hiveyard.core.errors import BadInput

FAILED, TIMED_OUT = 1, 124
_ENDING = ("session.", "turn.", "agent.asked")
"""Events of a session after which it may be done begin so."""


@click.command(short_help="Wait until tasks and sessions are done.")
@WORKS
@click.option("--any", "first", is_flag=True, help="Return when the first of them is done.")
@click.option("--timeout", type=DURATION, help="Give up after this time, with exit code 124: 90s, 10m, or seconds.")
@JSON
def wait(works: tuple[str, ...], first: bool, timeout: float | None, as_json: bool) -> int:
    """Wait until tasks have ended, and until sessions need a prompt or have stopped. Print each when it is done.

    The exit code is 0, or that of the first task or session that failed, or 124 when the time is over."""
    if not works:
        raise BadInput("no task or session to wait for is given", hint="hv wait ID...")
    waiting = {work.id: work for work in map(find, works)}
    done: list[Work] = []
    timed_out = False
    try:
        _collect(waiting, done, 1 if first else len(waiting), timeout, quiet=as_json)
    except TimeoutError:
        click.echo(f"{len(waiting) - len(done)} of {len(waiting)} are not done yet", err=True)
        timed_out = True
    if as_json:
        click.echo(json.dumps([work.found for work in done]))
    return TIMED_OUT if timed_out else next((code for work in done if (code := _exit_code(work))), 0)


def _collect(waiting: Mapping[str, Work], done: list[Work], count: int, timeout: float | None, *, quiet: bool) -> None:
    """Add each of `waiting` to `done` when it is done, until there are `count`. Raises TimeoutError, and the errors of
    following events."""
    queue: SimpleQueue[Work | BaseException] = SimpleQueue()
    for work in waiting.values():
        threading.Thread(target=_watch, args=(work, queue), daemon=True).start()
    end = None if timeout is None else time.monotonic() + timeout
    while len(done) < count:
        try:
            one = queue.get(timeout=None if end is None else max(0.0, end - time.monotonic()))
        except Empty:
            raise TimeoutError from None
        if isinstance(one, BaseException):
            raise one
        done.append(one)
        if not quiet:
            click.echo(f"{one.id}  {one.found['name' if one.is_session else 'slug']}: {_outcome(one)}")


def _watch(work: Work, queue: SimpleQueue[Work | BaseException]) -> None:
    try:
        queue.put(_until_done(work))
    except BaseException as error:  # noqa: BLE001 (raised again by the main thread)
        queue.put(error)


def _until_done(work: Work) -> Work:
    """Follow the events of a task or session until it is done, and return its state then."""
    if _is_done(work):
        return work
    path = f"/v1/{'sessions' if work.is_session else 'tasks'}/{work.id}"
    for event in live(work.id, after=work.found["last_seq"] if work.is_session else 0):
        if work.is_session and event["body"]["type"].startswith(_ENDING):
            work = Work(True, ask("GET", path))
            if _is_done(work):
                return work
    return Work(work.is_session, ask("GET", path))


def _is_done(work: Work) -> bool:
    found = work.found
    if not work.is_session:
        return found["ended_at"] is not None
    if found["status"] == "running":
        return found["activity"] == "waiting" or (found["activity"] == "idle" and not found["queued"])
    return found["status"] in ("stopped", "failed")


def _outcome(work: Work) -> str:
    running = work.is_session and work.found["status"] == "running"
    return str(work.found["activity"] if running else work.found["status"])


def _exit_code(work: Work) -> int:
    if work.is_session:
        return FAILED if work.found["status"] == "failed" else 0
    return int(work.found["exit_code"] or 0)
