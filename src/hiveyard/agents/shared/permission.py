"""Leave: what an agent asked to be allowed, and waits for."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hiveyard.agents.shared.jsonl import JSON
from hiveyard.core.errors import BadInput
from hiveyard.core.events import AgentAsked
from hiveyard.core.events.body import TEXT_LIMIT
from hiveyard.kit.text import one_line

_MOST = 1000
_LARGEST = 64 << 20
"""Requests that may be open at once, and bytes of their arguments: the program is a stranger."""


class PermissionRequest:
    """The requests of one conversation that are open."""

    def __init__(self) -> None:
        self._open: dict[str, JSON] = {}
        self._sizes: dict[str, int] = {}

    def wanted(self, request: str, tool: str, arguments: JSON, message: str, kept: JSON | None = None) -> AgentAsked:
        """It asks. `kept`, or else the arguments of what it asks, come back when that is settled."""
        given = msgspec.json.encode(arguments).decode()
        self.withdrawn(request)
        self._open[request], self._sizes[request] = arguments if kept is None else kept, len(given)
        while len(self._open) > _MOST or (sum(self._sizes.values()) > _LARGEST and len(self._open) > 1):
            self.withdrawn(next(iter(self._open)))
        return AgentAsked(
            message=f"may it do this? {message}",
            request=request,
            tool=tool[:200],
            input=given if len(given) <= TEXT_LIMIT else "",
        )

    def settle(self, request: str) -> JSON:
        """It is answered: what was kept of it. Raises BadInput for one that is not open."""
        self.check(request)
        kept = self._open[request]
        self.withdrawn(request)
        return kept

    def check(self, request: str) -> None:
        if request not in self._open:
            raise BadInput(f"the agent does not wait for an answer to {one_line(request, 80)!r}")

    def withdrawn(self, request: str) -> None:
        self._open.pop(request, None)
        self._sizes.pop(request, None)

    def end(self, of: Callable[[JSON], bool] = lambda kept: True) -> list[str]:
        """The turn is over, and nothing of it is asked any more: what was open. `of` tells by what was kept of a
        request whether it is of that turn."""
        dropped = [request for request, kept in self._open.items() if of(kept)]
        for request in dropped:
            self.withdrawn(request)
        return dropped
