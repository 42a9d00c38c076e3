"""A machine that is lost in the middle of a verb of a process manager."""

from __future__ import annotations

from typing import Any

import pytest

from hiveyard.core.commands import Command, ProcessSpec, Result
from hiveyard.core.errors import MachineLost
from hiveyard.core.ports import Guest, ProcessManager

pytestmark = pytest.mark.anyio


class _Lost:
    """The inside of a machine that is gone for whoever asks about what is called `word`."""

    def __init__(self, guest: Guest, word: str) -> None:
        self._guest = guest
        self._word = word

    async def run(self, command: Command, **more: Any) -> Result:
        if self._word in command.words():
            raise MachineLost("the machine is gone")
        return await self._guest.run(command, **more)


async def test_a_stop_of_several_that_loses_the_machine_says_so(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    command = Command(argv=("sleep", "1000"))
    await manager.start(guest, ProcessSpec(name=name, command=command, instances=3))
    with pytest.raises(MachineLost):
        await manager.stop(_Lost(guest, f"{name}@2"), name)  # type: ignore[arg-type]  # it has what a stop needs
    await manager.stop(guest, name)
    await manager.remove(guest, name)
