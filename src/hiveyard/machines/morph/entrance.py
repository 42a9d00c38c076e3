"""Run programs in a machine of Morph Cloud: the service's exec as the Exec of a ShellGuest."""

from __future__ import annotations

import base64
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import anyio

from hiveyard.core.errors import CannotExecute, MachineLost, ProviderError, ProviderNotFound, ProviderRefused
from hiveyard.core.machines import Capabilities, MachineStatus
from hiveyard.core.ports import Stream
from hiveyard.kit.text import one_line
from hiveyard.machines.morph import scripts
from hiveyard.machines.morph.program import WORD, Program
from hiveyard.machines.morph.service import Service
from hiveyard.machines.morph.settings import MorphSettings
from hiveyard.machines.morph.statuses import status_of
from hiveyard.machines.morph.wire import Executed, Said

UID = 1000
_HEARTBEAT = 4  # seconds: so often a guest says something, at least
_LEAVING = 10.0
_PAUSED_LOOK = 1.0
_REFUSALS = 3


class Entrance:
    """Starts programs in one instance."""

    def __init__(
        self, machine: str, instance: str, service: Service, settings: MorphSettings, capabilities: Capabilities
    ) -> None:
        self.streaming = settings.streaming
        self._machine = machine
        self._instance = instance
        self._service = service
        self._settings = settings
        self._capabilities = capabilities

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        id = secrets.token_hex(8)
        program = Program(id, self)
        try:
            await self._start(id, argv)
            yield program
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_LEAVING), suppress(ProviderError):
                await program.close()

    async def check(self) -> None:
        """Wait until the machine can be used again; a paused one has to be resumed. Raises MachineLost."""
        await self._goes_on()

    async def _goes_on(self) -> bool:
        """Wait until the machine can be used again. Return whether it was paused until then. Raises MachineLost."""
        stood = False
        while True:
            try:
                instance = await self._service.instance(self._instance)
            except ProviderNotFound as error:
                raise self._lost("it was ended") from error
            except ProviderError as error:
                raise self._lost(error.message) from error
            status, reason = status_of(instance)
            if status is not MachineStatus.READY:
                raise self._lost(reason or f"it is {status}")
            if instance.status == "ready":
                return stood
            stood = True
            await anyio.sleep(_PAUSED_LOOK)

    async def _start(self, id: str, argv: Sequence[str]) -> None:
        packed = b"".join(word.encode("utf-8", "surrogateescape") + b"\0" for word in argv)
        text = base64.b64encode(packed).decode()
        pieces = [text[start : start + WORD] for start in range(0, len(text), WORD)]
        who = (str(UID), self._capabilities.home, self._capabilities.user)
        command = ("bash", "-c", scripts.START, "hv", scripts.KEEP, id, *who, *pieces)
        done = await self._begun(command)
        if done.exit_code != 0:
            raise CannotExecute(f"{self._machine} cannot start a program: {one_line(done.stderr)}")

    async def _begun(self, command: Sequence[str]) -> Executed:
        """Repeat the request when the machine is resumed: a paused one refuses it."""
        refused = 0
        while True:
            try:
                # Shielded: a start that was abandoned may still happen, and nobody would end the program.
                with anyio.CancelScope(shield=True):
                    return await self.execute(command, 0)
            except ProviderError as error:
                refused = 0 if await self._goes_on() else refused + 1
                # It may have been resumed between the two requests.
                if refused > (_REFUSALS if isinstance(error, ProviderRefused) else 0):
                    raise self._lost(error.message) from error

    async def execute(self, command: Sequence[str], seconds: float) -> Executed:
        return await self._service.execute(self._instance, command, timeout=seconds + self._settings.request_timeout)

    async def live(self, command: Sequence[str]) -> AsyncGenerator[Said, None]:
        silence = _HEARTBEAT + self._settings.request_timeout
        async with self._service.executing(self._instance, command, silence) as events:
            async for said in events:
                yield said

    def _lost(self, why: str) -> MachineLost:
        return MachineLost(f"machine {self._machine} is gone: {why}", machine=self._machine)
