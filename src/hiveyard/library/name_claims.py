"""Claims on the names of machines that are being made, so that a failed boot cannot remove another caller's machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from hiveyard.core.errors import BadInput
from hiveyard.core.machines import check_machine_name
from hiveyard.core.ports import Provider
from hiveyard.kit.mask import Mask
from hiveyard.kit.names import new_id
from hiveyard.library.errors import preparing


class NameClaims:
    """The claimed names. A claim is exclusive while its block runs; afterwards the machine exists, or no machine has
    the name."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._claimed: set[str] = set()

    @asynccontextmanager
    async def new(self, name: str | None) -> AsyncIterator[str]:
        """Claim a name that no machine has: `name`, or a generated one. Raises BadInput, NotPrepared."""
        if name is None:
            yield f"m-{new_id()}"
            return
        check_machine_name(name)
        if name in self._claimed:
            raise _taken(f"a machine {name} is already being made")
        self._claimed.add(name)
        try:
            if name in await preparing("boot", name).run(self._provider.names(), Mask(())):
                raise _taken(f"a machine {name} already exists")
            yield name
        finally:
            self._claimed.discard(name)


def _taken(words: str) -> BadInput:
    return BadInput(words, hint="use another name or none, or terminate that machine")
