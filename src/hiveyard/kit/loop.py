"""The event loop of our own processes: asyncio's, with a selector that does not take a new socket for an old one.

When a socket is closed before the loop is told, and its number goes to another socket in the same breath, asyncio's
selector finds the number known and leaves the kernel alone; then it drops the number on behalf of the first. The second
is never heard: whoever waits for it waits for ever. anyio closes that way a stream from which another task receives,
and asyncssh a listener that is cancelled while it opens.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class Selector(selectors.DefaultSelector):
    """One that registers anew what it takes for registered."""

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)


def new() -> asyncio.AbstractEventLoop:
    """A loop with such a selector."""
    return asyncio.SelectorEventLoop(Selector())


OPTIONS: dict[str, Any] = {"loop_factory": new}
"""For `anyio.run` and its portals, as `backend_options`."""
