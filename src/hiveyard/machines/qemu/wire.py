"""Speak QEMU's two control protocols, JSON lines over a unix socket: QMP to QEMU itself, and the guest agent's.

The guest agent's answers come from the guest: they are limited in size and time, and the caller checks them.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.abc

from hiveyard.core.errors import MachineLost, ProviderError
from hiveyard.kit.lines import LineSplitter
from hiveyard.kit.shape import count, record, text
from hiveyard.kit.text import one_line
from hiveyard.machines.qemu.launch import short_path

_LINE_LIMIT = 4 << 20
_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Refused(ProviderError):
    """QEMU or the guest agent answered with an error, whose message this has."""


class Wire:
    """A connection that sends one command at a time. Lines that are not answers (events) are skipped."""

    def __init__(self, stream: anyio.abc.UNIXSocketStream) -> None:
        self._stream = stream
        self._splitter = LineSplitter(limit=_LINE_LIMIT)
        self._lines: list[bytes] = []

    async def call(self, command: str, **arguments: object) -> object:
        """Send a command and return its result. Raises Refused, or MachineLost when the other end is gone."""
        await self._send({"execute": command, "arguments": arguments})
        return await self._answer(command)

    async def pass_fd(self, name: str, fd: int) -> None:
        """Pass a descriptor to QEMU under a name."""
        message = json.dumps({"execute": "getfd", "arguments": {"fdname": name}}).encode() + b"\n"
        try:
            await self._stream.send_fds(message, [fd])
        except _GONE as error:
            raise MachineLost("the QEMU process is gone") from error
        await self._answer("getfd")

    async def open_file(self, fd: int) -> str:
        """Pass a descriptor to QEMU. Return the file name by which QEMU opens it."""
        message = json.dumps({"execute": "add-fd"}).encode() + b"\n"
        try:
            await self._stream.send_fds(message, [fd])
        except _GONE as error:
            raise MachineLost("the QEMU process is gone") from error
        number = count(record(await self._answer("add-fd")).get("fdset-id"))
        return f"/dev/fdset/{number}"

    async def _answer(self, command: str) -> object:
        while True:
            answer = await self.receive()
            if "error" in answer:
                raise Refused(f"{command}: {one_line(text(record(answer, 'error').get('desc')), 500)}")
            if "return" in answer:
                return answer["return"]

    async def receive(self) -> dict[str, object]:
        """Return the next line that is a JSON object."""
        while True:
            while not self._lines:
                await self._fill()
            try:
                answer = json.loads(self._lines.pop(0).lstrip(b"\xff"))
            except (ValueError, RecursionError):
                continue
            if isinstance(answer, dict):
                return answer

    async def _send(self, message: dict[str, object], before: bytes = b"") -> None:
        try:
            await self._stream.send(before + json.dumps(message).encode() + b"\n")
        except _GONE as error:
            raise MachineLost("the QEMU process is gone") from error

    async def _fill(self) -> None:
        try:
            data = await self._stream.receive()
        except _GONE as error:
            raise MachineLost("the QEMU process is gone") from error
        self._lines += [line.data for line in self._splitter.feed(data)]

    async def negotiate(self) -> None:
        """Wait for QMP's greeting and enter command mode."""
        while "QMP" not in await self.receive():
            pass
        await self.call("qmp_capabilities")

    async def synchronize(self) -> None:
        """Wait until the guest agent answers, and drop answers to earlier connections."""
        token = secrets.randbelow(1 << 31)
        # 0xff makes the agent drop an incomplete command that an earlier connection may have left.
        await self._send({"execute": "guest-sync-delimited", "arguments": {"id": token}}, before=b"\xff")
        while (await self.receive()).get("return") != token:
            pass

    async def script(self, script: str) -> str:
        """Run a shell script as the guest's root, through its agent, and return its output. Raises ProviderError if it
        fails."""
        started = await self.call("guest-exec", path="/bin/sh", arg=["-ec", script], **{"capture-output": True})
        pid, pause = count(record(started).get("pid")), 0.005
        while not (status := record(await self.call("guest-exec-status", pid=pid))).get("exited"):
            await anyio.sleep(pause)
            pause = min(pause * 1.5, 0.25)
        output, errors = (_decoded(status.get(f"{stream}-data")) for stream in ("out", "err"))
        if status.get("exitcode") != 0:
            raise ProviderError(f"a script in the guest failed: {one_line(errors or output, 500)}")
        return output


def _decoded(data: object) -> str:
    try:
        return base64.b64decode(text(data)).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator[Wire]:
    """Connect to the socket at `path`. Raises MachineLost if nothing listens there."""
    try:
        with short_path(path) as name:
            stream = await anyio.connect_unix(name)
    except OSError as error:
        raise MachineLost(f"the QEMU process does not answer on its control socket: {error.strerror}") from error
    async with stream:
        yield Wire(stream)


@asynccontextmanager
async def qmp(path: Path) -> AsyncIterator[Wire]:
    """Open a QMP connection that is ready for commands."""
    async with connected(path) as wire:
        await wire.negotiate()
        yield wire
