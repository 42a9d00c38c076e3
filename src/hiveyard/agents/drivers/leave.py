"""Leave: what an agent asked to be allowed, and waits for."""

from __future__ import annotations

import msgspec

from hiveyard.agents.jsonl import JSON
from hiveyard.core.errors import BadInput
from hiveyard.core.events import AgentAsked
from hiveyard.core.events.body import TEXT_LIMIT
from hiveyard.kit.text import one_line

_MOST = 1000
"""Requests that may be open at once: the program is a stranger."""


class Leave:
    """The requests of one conversation that are open."""

    def __init__(self) -> None:
        self._open: dict[str, JSON] = {}

    def wanted(self, request: str, tool: str, arguments: JSON, message: str, kept: JSON | None = None) -> AgentAsked:
        """It asks. `kept`, or else the arguments of what it asks, come back when that is settled."""
        if len(self._open) >= _MOST:
            self._open.pop(next(iter(self._open)))
        self._open[request] = arguments if kept is None else kept
        given = msgspec.json.encode(arguments).decode()
        return AgentAsked(
            message=f"may it do this? {message}",
            request=request,
            tool=tool[:200],
            input=given if len(given) <= TEXT_LIMIT else "",
        )

    def settle(self, request: str) -> JSON:
        """It is answered: what was kept of it. Raises BadInput for one that is not open."""
        self.check(request)
        return self._open.pop(request)

    def check(self, request: str) -> None:
        if request not in self._open:
            raise BadInput(f"the agent does not wait for an answer to {one_line(request, 80)!r}")

    def withdrawn(self, request: str) -> None:
        self._open.pop(request, None)

    def end(self) -> list[str]:
        """The turn is over, and nothing of it is asked any more: what was open."""
        dropped = list(self._open)
        self._open.clear()
        return dropped
