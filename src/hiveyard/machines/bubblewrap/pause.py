"""Freeze a machine and let it continue: with its control group's freezer, or with signals if there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from hiveyard.core.errors import CannotFreeze
from hiveyard.machines.bubblewrap import cgroups
from hiveyard.machines.bubblewrap.record import HostProcess
from hiveyard.machines.bubblewrap.signal_pause import SignalPause

_POLL = 0.1  # seconds


class MachinePause:
    """Whether the machine of process 1 `init` is frozen. `halted` is the file of its SignalPause. `gate` is a lock that
    all users of this machine share."""

    def __init__(self, name: str, init: HostProcess, groups: Sequence[str], halted: Path, gate: anyio.Lock) -> None:
        self.init = init
        self._name = name
        self._freezer = cgroups.freezer(groups)
        self._signals = SignalPause(init.pid, halted)
        self._gate = gate

    async def begin(self) -> None:
        """Freeze the machine; a frozen one is a success. Raises CannotFreeze; then the machine continues."""
        try:
            if self._freezer is not None:
                await cgroups.freeze(self._freezer)
            else:
                async with self._gate:
                    await self._signals.begin()
        except TimeoutError as error:
            why = "one of its processes waits for the host and does not stop"
            raise CannotFreeze(f"{self._name} cannot be frozen: {why}", hint="try again", machine=self._name) from error
        except OSError as error:
            raise CannotFreeze(f"{self._name} cannot be frozen: {error}", machine=self._name) from error

    async def end(self) -> None:
        """Let the machine continue; a running one is a success."""
        if self._freezer is not None:
            cgroups.thaw(self._freezer)
        else:
            await self._signals.end()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Wait until a program may be started in the machine, and keep `begin` waiting during the block.

        A program that joins a frozen control group is frozen, too, so there is nothing to wait for. Signals would miss
        a program that is started after they were sent."""
        while True:
            async with self._gate:
                if self._freezer is not None or not self._signals.paused or self.init.has_ended():
                    yield
                    return
            await anyio.sleep(_POLL)
