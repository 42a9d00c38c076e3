"""File descriptors, which guests can use up by connecting: how many there are, and how to tell that none is left."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hiveyard.door.event_quota import EventQuota
from hiveyard.kit.clock import Clock

_log = logging.getLogger("hiveyard.door")
_ENOUGH = 1 << 16
_OURS = 128
_FEWEST = 16


def raise_limit() -> None:
    """Let this process open as many files as it may. Programs that it starts inherit that, and some close all the
    numbers there could be, one by one: so not more than they get through at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def for_guests() -> int:
    """How many connections of guests there may be; each may need another one, to a vendor."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = _ENOUGH if soft == resource.RLIM_INFINITY else soft
    return max(_FEWEST, (known - _OURS) // 2)


@contextmanager
def told_seldom(clock: Clock) -> Iterator[None]:
    """asyncio tells that it cannot accept a connection with a traceback, a hundred times a second: now and then is
    enough."""
    loop, allowance = asyncio.get_running_loop(), EventQuota(clock, most=3, per_second=0.01)
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), OSError) and "accept()" in context.get("message", ""):
            if allowance.take():
                _log.warning("no connection can be accepted: %s%s", context["exception"], allowance.omitted())
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
