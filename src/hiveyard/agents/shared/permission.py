"""The permission requests of an agent that are not answered yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from hiveyard.agents.shared.jsonl import JSON
from hiveyard.core.errors import BadInput
from hiveyard.core.events import AgentAsked, AskOption
from hiveyard.core.events.body import TEXT_LIMIT
from hiveyard.kit.text import one_line

_MAX_OPEN = 1000
_MAX_OPTIONS = 20
_MAX_SIZE = 64 << 20
"""The largest number of open requests, and the total bytes of their arguments: the program is not trusted."""


class PermissionRequests:
    """The open permission requests of one conversation."""

    def __init__(self) -> None:
        self._open: dict[str, JSON] = {}
        self._sizes: dict[str, int] = {}

    def add(
        self,
        request: str,
        tool: str,
        arguments: JSON,
        message: str,
        kept: JSON | None = None,
        options: Sequence[AskOption] = (),
    ) -> AgentAsked:
        """Add a request. `kept`, or else its arguments, are returned when it is settled."""
        encoded = msgspec.json.encode(arguments).decode()
        self.remove(request)
        self._open[request], self._sizes[request] = arguments if kept is None else kept, len(encoded)
        while len(self._open) > _MAX_OPEN or (sum(self._sizes.values()) > _MAX_SIZE and len(self._open) > 1):
            self.remove(next(iter(self._open)))
        return AgentAsked(
            message=f"permission requested: {message}",
            request=request,
            tool=tool[:200],
            input=encoded if len(encoded) <= TEXT_LIMIT else "",
            options=tuple(options[:_MAX_OPTIONS]),
        )

    def settle(self, request: str) -> JSON:
        """Remove a request that was answered, and return its data. Raises BadInput if it is not open."""
        self.check(request)
        kept = self._open[request]
        self.remove(request)
        return kept

    def kept(self, request: str) -> JSON:
        """Return the data of an open request. Raises BadInput if it is not open."""
        self.check(request)
        return self._open[request]

    def check(self, request: str) -> None:
        if request not in self._open:
            raise BadInput(f"the agent is not waiting for an answer to {one_line(request, 80)!r}")

    def remove(self, request: str) -> None:
        self._open.pop(request, None)
        self._sizes.pop(request, None)

    def clear(self, belongs: Callable[[JSON], bool] = lambda kept: True) -> list[str]:
        """Remove all requests at the end of a turn, and return them. `belongs` selects the requests of that turn by
        their data."""
        dropped = [request for request, kept in self._open.items() if belongs(kept)]
        for request in dropped:
            self.remove(request)
        return dropped


def option(id: str, name: str, allow: bool) -> AskOption:
    """Return an answer that the program offers, with a name of limited length. The id is kept as it is."""
    return AskOption(id=id, name=one_line(name or id, 200), allow=allow)


def no_such_option(wanted: str) -> BadInput:
    """Return the error for an option that the program did not offer."""
    return BadInput(f"the agent did not offer the answer {one_line(wanted, 80)!r}", hint="hv inbox lists its answers")
