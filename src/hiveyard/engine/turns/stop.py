"""Request the early end of a task or session. The first reason stays."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from hiveyard.core.errors import Cancelled, HiveyardError


class Stop:
    """A request to end. A turn waits for it; a block inside `cancel_on_request` is cancelled at once."""

    def __init__(self) -> None:
        self._requested = anyio.Event()
        self._reason: HiveyardError | None = None
        self._scopes: set[anyio.CancelScope] = set()
        self._cancellable: dict[anyio.CancelScope, float] = {}

    @property
    def reason(self) -> HiveyardError | None:
        return self._reason

    def request(self, reason: HiveyardError) -> None:
        """Request the end. A second reason does not replace the first; `Cancelled` still ends `cancellable` blocks."""
        if isinstance(reason, Cancelled):
            for scope, grace in self._cancellable.items():
                scope.deadline = min(scope.deadline, anyio.current_time() + grace)
        if self._reason is not None:
            return
        self._reason = reason
        self._requested.set()
        for scope in self._scopes:
            scope.cancel()

    async def wait(self) -> HiveyardError:
        """Wait for the request; return the reason."""
        await self._requested.wait()
        assert self._reason is not None
        return self._reason

    @contextmanager
    def cancel_on_request(self) -> Iterator[None]:
        """Cancel the block when the end is requested, then raise the reason."""
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
