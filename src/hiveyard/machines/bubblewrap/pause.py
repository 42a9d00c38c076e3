"""A machine that stands still and goes on: by its control group's freezer where it has one, else by signals."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.core.errors import CannotFreeze
from hiveyard.machines.bubblewrap import cgroups
from hiveyard.machines.bubblewrap.record import Alive
from hiveyard.machines.bubblewrap.signal_pause import SignalPause

_LOOK = 0.1  # seconds


class MachinePause:
    """Whether one machine, of process `init`, stands still. `halted` is a file for `Halt`; `gate` is one for all who
    use this machine."""

    def __init__(self, name: str, init: Alive, groups: Sequence[str], halted: Path, gate: anyio.Lock) -> None:
        self.init = init
        self._name = name
        self._freezer = cgroups.freezer(groups)
        self._halt = SignalPause(init.pid, halted)
        self._gate = gate

    async def begin(self) -> None:
        """Still already is a success. Raises CannotFreeze; then it goes on."""
        try:
            if self._freezer is not None:
                await cgroups.freeze(self._freezer)
            else:
                async with self._gate:
                    await self._halt.begin()
        except TimeoutError as error:
            why = "a process of it waits for the host and does not stop"
            raise CannotFreeze(f"{self._name} cannot be frozen: {why}", hint="try again", machine=self._name) from error
        except OSError as error:
            raise CannotFreeze(f"{self._name} cannot be frozen: {error}", machine=self._name) from error

    async def end(self) -> None:
        """Going on already is a success."""
        if self._freezer is not None:
            cgroups.thaw(self._freezer)
        else:
            await self._halt.end()

    @asynccontextmanager
    async def goes_on(self) -> AsyncIterator[None]:
        """A moment to send a program in. One that enters a frozen group is frozen with it; nothing would stop one that
        comes after the signals, so that waits, and `begin` waits for the end of the block."""
        while True:
            async with self._gate:
                if self._freezer is not None or not self._halt.stands or self.init.gone():
                    yield
                    return
            await anyio.sleep(_LOOK)
