"""`hv wait`: return when tasks have ended, and when sessions wait for a prompt or have stopped."""

from __future__ import annotations

import json
import threading
import time
from queue import Empty, SimpleQueue
from typing import Any

import click

from hiveyard.cli.live import ask, live
from hiveyard.cli.names import WORKS
from hiveyard.cli.options import DURATION, JSON
from hiveyard.cli.work import Work, find
from hiveyard.core.errors import BadInput

TIMED_OUT = 124
_AT_WORK = ("thinking", "executing", "compacting")
_TELLING = ("session.", "turn.", "agent.asked")


@click.command(short_help="Wait until tasks and sessions are done.")
@WORKS
@click.option("--any", "first", is_flag=True, help="Return when the first of them is done.")
@click.option("--timeout", type=DURATION, help="Give up after this time, with exit code 124: 90s, 10m, or seconds.")
@JSON
def wait(works: tuple[str, ...], first: bool, timeout: float | None, as_json: bool) -> int:
    """Wait until tasks have ended, and until sessions wait for a prompt or have stopped. Print each when it is done.

    The exit code is 0, or that of the first task that did not succeed, or 124 when the time is over."""
    if not works:
        raise BadInput("nothing says what to wait for", hint="hv wait ID...")
    waiting = {work.id: work for work in map(find, works)}
    done: SimpleQueue[Work | BaseException] = SimpleQueue()
    for work in waiting.values():
        threading.Thread(target=_watch, args=(work, done), daemon=True).start()
    ended: list[Work] = []
    until = None if timeout is None else time.monotonic() + timeout
    while len(ended) < (1 if first else len(waiting)):
        try:
            one = done.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
        except Empty:
            click.echo(f"{len(waiting) - len(ended)} of {len(waiting)} are not done yet", err=True)
            return TIMED_OUT
        if isinstance(one, BaseException):
            raise one
        ended.append(one)
        if not as_json:
            click.echo(f"{one.id}  {one.found['name' if one.is_session else 'slug']}: {_outcome(one)}")
    if as_json:
        click.echo(json.dumps([one.found for one in ended]))
    return next((code for one in ended if (code := _exit_code(one))), 0)


def _watch(work: Work, done: SimpleQueue[Work | BaseException]) -> None:
    try:
        done.put(_until_done(work))
    except BaseException as error:  # noqa: BLE001 (raised by the thread that waits)
        done.put(error)


def _until_done(work: Work) -> Work:
    """Follow the events of one; ask again how it stands after those that can end it."""
    path = f"/v1/{'sessions' if work.is_session else 'tasks'}/{work.id}"
    if _is_done(work):
        return work
    after = work.found["last_seq"] if work.is_session else 0
    for event in live(work.id, after=after):
        if work.is_session and event["body"]["type"].startswith(_TELLING):
            work = Work(True, ask("GET", path))
            if _is_done(work):
                return work
    return Work(work.is_session, ask("GET", path))


def _is_done(work: Work) -> bool:
    if not work.is_session:
        return work.found["ended_at"] is not None
    status = work.found["status"]
    return status in ("stopped", "failed", "finished") or (
        status == "running" and work.found["activity"] not in _AT_WORK
    )


def _outcome(work: Work) -> str:
    running = work.is_session and work.found["status"] == "running"
    return str(work.found["activity"] if running else work.found["status"])


def _exit_code(work: Work) -> int:
    code: Any = None if work.is_session else work.found["exit_code"]
    return int(code or 0)
