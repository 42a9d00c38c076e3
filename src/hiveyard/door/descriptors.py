"""Limit the file descriptors that guests can use up by connecting, and report when none is left."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hiveyard.door.quota import EventQuota
from hiveyard.kit.clock import Clock

_log = logging.getLogger("hiveyard.door")
_MAXIMUM = 1 << 16
_RESERVED = 128
_MINIMUM = 16


def raise_limit() -> None:
    """Raise this process's limit of open files to the hard limit, but to at most `_MAXIMUM`.

    Programs that it starts inherit the limit, and some of them close every possible descriptor one by one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    raised = _MAXIMUM if hard == resource.RLIM_INFINITY else min(hard, _MAXIMUM)
    if soft != resource.RLIM_INFINITY and soft < raised:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))


def guest_connections() -> int:
    """Return how many guests may connect at the same time. Each may need a second connection, to a vendor."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    known = _MAXIMUM if soft == resource.RLIM_INFINITY else soft
    return max(_MINIMUM, (known - _RESERVED) // 2)


@contextmanager
def limit_accept_warnings(clock: Clock) -> Iterator[None]:
    """Log failed accepts at a low rate: asyncio logs a traceback for each, a hundred times a second."""
    loop, allowance = asyncio.get_running_loop(), EventQuota(clock, most=3, per_second=0.01)
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if isinstance(context.get("exception"), OSError) and "accept()" in context.get("message", ""):
            if allowance.take():
                _log.warning("no connection can be accepted: %s%s", context["exception"], allowance.note_skipped())
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
    try:
        yield
    finally:
        loop.set_exception_handler(before)
