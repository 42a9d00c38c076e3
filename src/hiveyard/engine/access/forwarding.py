"""Forward connections to a host port into a machine. Each connection is served by a program in the guest.

This works for any guest, whatever its network. Bytes from the machine go to the client and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import anyio
from anyio.abc import ByteStream, SocketListener

from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.core.ports import Guest, Stream
from hiveyard.engine.access.host_ports import ReservedPort
from hiveyard.kit.group import together

log = logging.getLogger(__name__)
MAX_CONNECTIONS = 256
"""Maximum number of concurrent connections of one port; further ones wait."""
ACCEPT_RETRY_DELAY = 1.0
"""Seconds until connections are accepted again after accepting failed."""

# Argument: PORT. A dev server may listen only on ::1. Either direction may end long before the other. When our side
# ends, socat shuts down the server's side (bash cannot). When the server ends its side, dd prints the number of bytes
# on stderr: not every provider reports the end of stdout before the end of the program.
_CONNECT = r"""
for host in 127.0.0.1 ::1; do
  { exec 3<>"/dev/tcp/$host/$1"; } 2>/dev/null && break
done
[[ -e /proc/self/fd/3 ]] || exit 41
socat -u - FD:3,shut-down <&0 >/dev/null 2>&1 &
LC_ALL=C dd bs=128K <&3 3<&-
exec <&- 3<&-
wait
"""
_COUNT = re.compile(rb"^(\d{1,18}) bytes", re.MULTILINE)
_STDERR_LIMIT = 4096

Guests = Callable[[], AbstractAsyncContextManager[Guest]]


def connect_command(port: int) -> Command:
    """Return a command that connects its stdin and stdout to a port of the guest's loopback."""
    if not 1 <= port <= 65535:
        raise BadInput(f"{port} is not a port: use 1 to 65535")
    return Command(argv=("bash", "-c", _CONNECT, "hv", str(port)), cwd="/")


async def relay(held: ReservedPort, guests: Guests, command: Command) -> None:
    """Forward all connections to a port, each to its own run of `command`, until cancelled."""
    slots = anyio.Semaphore(MAX_CONNECTIONS)

    async def carry(connection: ByteStream) -> None:
        try:
            async with connection, guests() as guest, guest.open(command) as stream:
                await join_streams(connection, stream)
        except HiveyardError as error:
            log.info("port %d: %s", held.port, error.message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            log.debug("port %d: the connection broke: %s", held.port, error)
        except Exception:
            log.exception("port %d: a connection failed", held.port)
        finally:
            slots.release()

    listener = await SocketListener.from_socket(held.socket)
    async with together() as group:
        while True:
            # A waiting client is not accepted yet: everybody on this host may connect, and descriptors are limited.
            await slots.acquire()
            group.start_soon(carry, await _accepted(listener, held.port), name=f"a connection to port {held.port}")


async def _accepted(listener: SocketListener, port: int) -> ByteStream:
    """Return the next connection. Retry while none can be accepted, for instance for lack of descriptors or memory."""
    while True:
        try:
            return await listener.accept()
        except OSError as error:
            log.warning("port %d: cannot accept a connection: %s", port, error.strerror or error)
            await anyio.sleep(ACCEPT_RETRY_DELAY)


class Connection(Protocol):
    """The two directions of a client's connection, as anyio's streams have them."""

    async def receive(self) -> bytes:
        """Return data from the client. Raises anyio.EndOfStream when the client has ended its side,
        BrokenResourceError when the connection broke."""

    async def send(self, item: bytes) -> None: ...

    async def send_eof(self) -> None: ...


async def join_streams(connection: Connection, stream: Stream) -> None:
    """Copy data between a connection and the program of `connect_command` until the program ends. Either direction may
    end before the other."""
    outward = _Outward(connection, stream)
    async with together() as group:
        group.start_soon(_inward, connection, stream, name="into the guest")
        group.start_soon(outward.listen, name="stderr of the guest's program")
        group.start_soon(outward.carry, name="out of the guest")
        await stream.wait()
        await outward.over.wait()
        group.cancel_scope.cancel()


async def _inward(connection: Connection, stream: Stream) -> None:
    with contextlib.suppress(anyio.EndOfStream):
        while True:
            await stream.send(await connection.receive())
    await stream.send_eof()


class _Outward:
    """The direction to the client. `over` is set when all data was sent."""

    def __init__(self, connection: Connection, stream: Stream) -> None:
        self.over = anyio.Event()
        self._connection = connection
        self._stream = stream
        self._given = 0
        self._total = -1

    async def carry(self) -> None:
        while data := await self._stream.receive():
            await self._connection.send(data)
            self._given += len(data)
            await self._end_when_all_is_given()
        self._total = self._given
        await self._end_when_all_is_given()

    async def listen(self) -> None:
        output = b""
        while piece := await self._stream.receive_error():
            output = (output + piece)[-_STDERR_LIMIT:]
            if self._total < 0 and (count := _COUNT.search(output)):
                self._total = int(count[1])
                await self._end_when_all_is_given()

    async def _end_when_all_is_given(self) -> None:
        if self._given == self._total and not self.over.is_set():
            self.over.set()
            await self._connection.send_eof()
