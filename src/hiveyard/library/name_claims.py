"""The names of machines that are being made: what fails on the way is removed, and must not be somebody else's."""

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
    """Each name is one caller's for as long as the block lasts, at whose end there is a machine of it or none."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._claimed: set[str] = set()

    @asynccontextmanager
    async def new(self, name: str | None) -> AsyncIterator[str]:
        """A name that no machine has: `name`, or one that is made up. Raises BadInput, NotPrepared."""
        if name is None:
            yield f"m-{new_id()}"
            return
        check_machine_name(name)
        if name in self._claimed:
            raise _taken(f"the machine {name} is being made already")
        self._claimed.add(name)
        try:
            if name in await preparing("boot", name).of(self._provider.names(), Mask(())):
                raise _taken(f"there is a machine {name} already")
            yield name
        finally:
            self._claimed.discard(name)


def _taken(words: str) -> BadInput:
    return BadInput(words, hint="another name, or none; or terminate that one")
