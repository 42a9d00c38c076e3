"""The event loop of Hiveyard's processes: asyncio's, with workarounds for two conflicts with anyio.

The first: a socket is closed before the loop is informed, and its descriptor number is reused at once by another
socket. asyncio's selector then takes the number for registered and does not register it with the kernel. Later it
unregisters the number on behalf of the first socket. The second socket gets no events, and a task that waits for it
hangs. anyio closes a stream in this way while another task receives from it, and asyncssh a listener that is cancelled
while it opens.

The second: a socket becomes ready in the same round in which the task that waits for it is cancelled. anyio then sets a
future that is already done, and the loop reports an error although nothing is wrong."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any, TypeVarTuple

_Args = TypeVarTuple("_Args")


class Selector(selectors.DefaultSelector):
    """A selector that registers a descriptor again where it seems to be registered."""

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)


class Loop(asyncio.SelectorEventLoop):
    """A loop that sets the future of a socket only while it is pending."""

    def __init__(self) -> None:
        super().__init__(Selector())

    def add_reader(self, fd: Any, callback: Callable[[*_Args], Any], *args: *_Args) -> None:
        super().add_reader(fd, _while_pending(callback), *args)

    def add_writer(self, fd: Any, callback: Callable[[*_Args], Any], *args: *_Args) -> None:
        super().add_writer(fd, _while_pending(callback), *args)


def _while_pending(callback: Callable[[*_Args], Any]) -> Callable[[*_Args], Any]:
    future = getattr(callback, "__self__", None)
    if not isinstance(future, asyncio.Future):
        return callback

    def call(*args: *_Args) -> None:
        if not future.done():
            callback(*args)

    return call


OPTIONS: dict[str, Any] = {"loop_factory": Loop}
"""The `backend_options` for `anyio.run` and its portals."""
