"""Why a task is to end early. The first reason given stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from hiveyard.core.errors import Cancelled, HiveyardError


class Stop:
    """A request to end: made once, waited for by a turn, and felt at once by what runs inside `abandoning`."""

    def __init__(self) -> None:
        self._asked = anyio.Event()
        self._reason: HiveyardError | None = None
        self._scopes: set[anyio.CancelScope] = set()
        self._cancellable: dict[anyio.CancelScope, float] = {}

    @property
    def reason(self) -> HiveyardError | None:
        return self._reason

    def ask(self, reason: HiveyardError) -> None:
        """Request the end. A second reason does not replace the first; `Cancelled` still ends `cancellable` blocks."""
        if isinstance(reason, Cancelled):
            for scope, grace in self._cancellable.items():
                scope.deadline = min(scope.deadline, anyio.current_time() + grace)
        if self._reason is not None:
            return
        self._reason = reason
        self._asked.set()
        for scope in self._scopes:
            scope.cancel()

    async def asked(self) -> HiveyardError:
        """Wait for it."""
        await self._asked.wait()
        assert self._reason is not None
        return self._reason

    @contextmanager
    def abandoning(self) -> Iterator[None]:
        """What runs in this block is cancelled when the end is asked for; then the reason is raised."""
        scope = anyio.CancelScope()
        self._scopes.add(scope)
        try:
            if self._reason is not None:
                raise self._reason
            with scope:
                yield
            if scope.cancelled_caught and self._reason is not None:
                raise self._reason
        finally:
            self._scopes.discard(scope)

    @contextmanager
    def cancellable(self, grace: float) -> Iterator[None]:
        """Cancel the block `grace` seconds after a user cancels while it runs, then raise Cancelled. A request from
        before the block does not count."""
        with anyio.CancelScope() as scope:
            self._cancellable[scope] = grace
            try:
                yield
            finally:
                del self._cancellable[scope]
        if scope.cancelled_caught:
            raise Cancelled("cancelled while the work was collected")
