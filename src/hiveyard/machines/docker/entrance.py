"""Run programs in a container with the engine's exec API, as the Exec of a ShellGuest."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import anyio
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from hiveyard.core.errors import MachineLost, ProviderError, ProviderUnavailable
from hiveyard.core.ports import Stream
from hiveyard.kit.text import one_line
from hiveyard.machines.docker.engine import Engine
from hiveyard.machines.docker.hijack import Hijacked, hijacked

EXISTING = ("running", "paused")
"""The states of a container whose processes exist."""
_REFUSED, _KILLED = 126, 137
_CONFLICT = 409
_EXTRA_PIDS = 64
# Errors of a request about a machine. To the user of the machine they all mean the same.
_GONE = (DockerError, ProviderUnavailable, aiohttp.ClientError, OSError)
# Seconds between polls. Most commands end before the first one, and the end of their output shows it. The engine may
# learn of the end of a process a moment after that of its output.
_FIRST_POLL = 0.1
_SECOND_POLL = 0.005
_LAST_POLL = 1.0
PAUSED_POLL = 0.1
_ATTACHED: dict[str, object] = {"Detach": False, "Tty": False}
_EXEC_OTHER = r'eval "set -- $1"; exec "$@"'


class Entrance:
    """An Exec for one container, whose limit is `pids` processes. `client` stays open for as long as the guest is used.
    `prefix` are the first words of every program."""

    def __init__(
        self,
        machine: str,
        container: str,
        user: str,
        pids: int,
        engine: Engine,
        client: Docker,
        prefix: Sequence[str] = (),
    ) -> None:
        self._machine = machine
        self._pids = pids
        self._limit_raised = False
        self._container = container
        self._user = user
        self._engine = engine
        self._client = client
        self._prefix = prefix

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        try:
            exec_id, connection, hijack = await self._begin(argv)
        except _GONE as error:
            raise self._lost(error) from error
        try:
            yield _ExecStream(self, exec_id, hijack)
        finally:
            await connection.__aexit__(None, None, None)

    async def _begin(self, argv: Sequence[str]) -> tuple[str, AbstractAsyncContextManager[Hijacked], Hijacked]:
        """Start a program, after the container was unpaused: an engine refuses before."""
        while True:
            try:
                exec_id = await self._create(argv)
                connection = hijacked(self._engine.socket, self._start(exec_id), _ATTACHED)
                return exec_id, connection, await connection.__aenter__()
            except DockerError as error:
                if error.status != _CONFLICT or (await self._seen())["State"]["Status"] not in EXISTING:
                    raise
            await anyio.sleep(PAUSED_POLL)

    def _start(self, exec_id: str) -> str:
        return f"/{self._client.api_version}/exec/{exec_id}/start"

    async def _create(self, argv: Sequence[str]) -> str:
        execution = await self._client.containers.container(self._container).exec(
            [*self._prefix, *_as_text(argv)], stdin=True, stdout=True, stderr=True, user=self._user
        )
        return execution.id

    async def ended(self, exec_id: str) -> int | None:
        """Return the exit code of a program, None while it runs. Raises MachineLost."""
        try:
            answer = await self._client.containers.exec(exec_id).inspect()
        except _GONE as error:
            raise self._lost(error) from error
        if answer.get("Running"):
            return None
        code = answer.get("ExitCode")
        if not isinstance(code, int):
            return None
        if code == _KILLED:
            await self._check_alive()
        if code == _REFUSED:
            await self._limit_processes(self._pids + _EXTRA_PIDS)
        return code

    async def close(self) -> None:
        """Restore the limit on processes, unless the machine has ended."""
        if self._limit_raised:
            with contextlib.suppress(MachineLost):
                await self._limit_processes(self._pids)

    async def _limit_processes(self, pids: int) -> None:
        """Set the limit on processes. It is raised for the next program when a fork bomb has filled the machine:
        otherwise nothing can be started, not even the program that kills the bomb."""
        url = f"http://engine/{self._client.api_version}/containers/{self._container}/update"
        try:
            async with self._client.session.post(url, json={"PidsLimit": pids}) as response:
                self._limit_raised = response.ok and pids > self._pids
        except _GONE as error:
            raise self._lost(error) from error

    async def _check_alive(self) -> None:
        """Raise MachineLost if the machine has ended. A command that was killed in a running machine is a result.

        The engine reports `running` for a moment after process 1 has ended, but it cannot start a program then.
        """
        try:
            if await self._starts("true"):
                return
            with anyio.move_on_after(_LAST_POLL):
                while await self._running():  # noqa: ASYNC110
                    await anyio.sleep(_SECOND_POLL)
                raise self._lost(None)
        except _GONE as error:
            raise self._lost(error) from error

    async def _running(self) -> bool:
        return bool((await self._seen())["State"]["Running"])

    async def _seen(self) -> Mapping[str, Any]:
        return await self._client.containers.container(self._container).show()

    async def _starts(self, program: str) -> bool:
        try:
            probe = self._client.containers.exec(await self._create((program,)))
            async with hijacked(self._engine.socket, self._start(probe.id), _ATTACHED) as output:
                while await output.receive(error=False):
                    pass
            while (answer := await probe.inspect()).get("Running"):  # noqa: ASYNC110
                await anyio.sleep(_SECOND_POLL)  # the engine has no request that waits for an exec
        except DockerError:
            return False
        return bool(answer.get("ExitCode") == 0)

    def _lost(self, error: Exception | None) -> ProviderError:
        why = one_line(str(error), 300) if error else "its container is not running any more"
        return MachineLost(f"machine {self._machine} is gone: {why}", machine=self._machine)


def paused(seen: Mapping[str, Any]) -> bool:
    """Whether a container, as the engine describes it, is paused."""
    return bool(seen) and seen["State"]["Status"] == "paused"


class _ExecStream:
    """The Stream of one program. The engine closes the output when the program and its children have closed it."""

    def __init__(self, entrance: Entrance, exec_id: str, hijack: Hijacked) -> None:
        self._entrance = entrance
        self._id = exec_id
        self._hijack = hijack

    async def send(self, data: bytes) -> None:
        await self._hijack.send(data)

    async def send_eof(self) -> None:
        await self._hijack.send_eof()

    async def receive(self) -> bytes:
        return await self._hijack.receive(error=False)

    async def receive_error(self) -> bytes:
        return await self._hijack.receive(error=True)

    async def wait(self) -> int:
        delay = _FIRST_POLL
        with anyio.move_on_after(delay):
            await self._hijack.over.wait()
            delay = _SECOND_POLL
        while (status := await self._entrance.ended(self._id)) is None:
            if self._hijack.over.is_set():
                await anyio.sleep(delay)
            else:
                with anyio.move_on_after(delay):
                    await self._hijack.over.wait()
                    delay = _SECOND_POLL
            delay = min(_LAST_POLL, delay * 1.5)
        return status


def _as_text(argv: Sequence[str]) -> Sequence[str]:
    """Return `argv` in a form that JSON can represent. Words that are not UTF-8 become escapes, which bash decodes."""
    if all(_is_text(word) for word in argv):
        return argv
    return ("bash", "-c", _EXEC_OTHER, "bash", " ".join(map(_escaped, argv)))


def _is_text(word: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in word)


def _escaped(word: str) -> str:
    return "$'" + "".join(f"\\x{byte:02x}" for byte in word.encode("utf-8", "surrogateescape")) + "'"
