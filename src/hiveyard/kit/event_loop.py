"""The event loop of our own processes: asyncio's, without two of its quarrels with anyio.

When a socket is closed before the loop is told, and its number goes to another socket in the same breath, asyncio's
selector finds the number known and leaves the kernel alone; then it drops the number on behalf of the first. The second
is never heard: whoever waits for it waits for ever. anyio closes that way a stream from which another task receives,
and asyncssh a listener that is cancelled while it opens.

When a socket becomes ready in the same round in which the task that waits for it is cancelled, anyio gives the news to
a future that wants none any more, and the loop reports an error that is none.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, TypeVarTuple

_Given = TypeVarTuple("_Given")


class Selector(selectors.DefaultSelector):
    """One that registers anew what it takes for registered."""

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)


class Loop(asyncio.SelectorEventLoop):
    """One that tells a future of a socket only while somebody waits for it."""

    def __init__(self) -> None:
        super().__init__(Selector())

    def add_reader(self, fd: Any, callback: Callable[[*_Given], Any], *args: *_Given) -> None:
        super().add_reader(fd, _while_awaited(callback), *args)

    def add_writer(self, fd: Any, callback: Callable[[*_Given], Any], *args: *_Given) -> None:
        super().add_writer(fd, _while_awaited(callback), *args)


def _while_awaited(callback: Callable[[*_Given], Any]) -> Callable[[*_Given], Any]:
    future = getattr(callback, "__self__", None)
    if not isinstance(future, asyncio.Future):
        return callback

    def tell(*args: *_Given) -> None:
        if not future.done():
            callback(*args)

    return tell


OPTIONS: dict[str, Any] = {"loop_factory": Loop}
"""For `anyio.run` and its portals, as `backend_options`."""
