"""Apps of this host below a path of a door, such as `/mcp`: for guests with the key of the door, within own limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope

from hiveyard.door.reply import Outgoing

_KEY_HEADERS = (b"authorization", b"x-api-key")


class Mount(NamedTuple):
    """An ASGI app that answers at most `requests` requests at a time; more wait. `body_kib` limits a request's body.

    The app does not see the guest's key."""

    app: ASGIApp
    requests: int = 16
    body_kib: int = 4096


class TooLarge(Exception):
    """The body of a request exceeds the limit of its mount."""


class Mounted:
    """A mount in one door, at `prefix`."""

    def __init__(self, prefix: str, mount: Mount) -> None:
        self.prefix = prefix
        self._mount = mount
        self._slots = anyio.CapacityLimiter(mount.requests)

    async def serve(self, scope: Scope, receive: Receive, out: Outgoing) -> None:
        """Let the app answer a request. Raises TooLarge, unless the answer has begun."""
        limit = self._mount.body_kib << 10
        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise TooLarge(f"the body exceeds {self._mount.body_kib} KiB")
            return message

        async def send(message: Message) -> None:
            if received <= limit:  # else the door answers, and not the app's own handler of errors
                await out(message)

        async with self._slots:
            await self._mount.app(self._below(scope), bounded, send)

    def _below(self, scope: Scope) -> Scope:
        """Return the scope of a request as the app sees it: the prefix is its root path (ASGI)."""
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _KEY_HEADERS]
        return {**scope, "root_path": self.prefix, "headers": headers}


class Mounts:
    """The mounts of one door, by prefix."""

    def __init__(self, mounts: Mapping[str, Mount]) -> None:
        self._mounted = [Mounted(prefix, mount) for prefix, mount in mounts.items()]

    def find(self, raw_path: str) -> Mounted | None:
        """Return the mount of a path. Paths are compared before any decoding."""
        for mounted in self._mounted:
            if raw_path == mounted.prefix or raw_path.startswith(mounted.prefix + "/"):
                return mounted
        return None
