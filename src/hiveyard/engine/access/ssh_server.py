"""An ssh server for a session, the same for every provider: the server runs here, its programs run in the guest.

It supports what ssh, scp, sftp, rsync and editors use: commands, a shell with a terminal, the guest's own sftp server,
and connections to ports of the guest. The image needs no sshd, and the keys never leave the host. Only the session's
own key is accepted, for the guest's user. No connection leads from the guest to the host.
"""

from __future__ import annotations

import fcntl
import logging
import os
import pty
import struct
import termios
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import asyncssh
from anyio.abc import TaskGroup

from hiveyard.core.commands import Command
from hiveyard.core.errors import HiveyardError
from hiveyard.core.ports import Provider, Stream, Terminals
from hiveyard.engine.access.exec_channel import outputs
from hiveyard.engine.access.forwarding import connect_command, join_streams
from hiveyard.engine.access.host_ports import ReservedPort
from hiveyard.engine.access.ssh_keys import Keys
from hiveyard.kit import process
from hiveyard.kit.group import together
from hiveyard.kit.text import one_line, printable
from hiveyard.processes.terminal import shown

log = logging.getLogger(__name__)
_PIECE = 64 << 10
_HIGH = 1 << 20
_LOGIN = 30.0
_FAILED = 255
_LOCAL_MODES = 3
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SFTP = (
    "for p in /usr/lib/openssh/sftp-server /usr/lib/ssh/sftp-server /usr/libexec/openssh/sftp-server"
    ' /usr/libexec/sftp-server; do [[ -x $p ]] && exec "$p"; done;'
    " echo 'there is no sftp-server in the image of this machine' >&2; exit 127"
)


@asynccontextmanager
async def serve_ssh(held: ReservedPort, provider: Provider, machine: str, keys: Keys) -> AsyncIterator[None]:
    """Serve ssh into `machine` on a host port for as long as the block lasts."""
    async with anyio.create_task_group() as group:
        target = _Target(provider, machine, keys, group)
        # `listen` serves before it returns. If it were cancelled in between, only the event loop would know the
        # listener, and the next file with the same descriptor number would get no events.
        with anyio.CancelScope(shield=True):
            server = await asyncssh.listen(
                sock=held.socket,
                server_factory=lambda: _Server(target),
                server_host_keys=[keys.host],
                encoding=None,
                line_editor=False,
                login_timeout=_LOGIN,
                keepalive_interval=30,
                agent_forwarding=False,
                x11_forwarding=False,
                allow_scp=False,
                password_auth=False,
                kbdint_auth=False,
            )
        try:
            yield
        finally:
            server.close()
            for connection in list(target.connections):
                connection.abort()
            group.cancel_scope.cancel()


class _Target:
    """State that all connections to one machine share."""

    def __init__(self, provider: Provider, machine: str, keys: Keys, group: TaskGroup) -> None:
        self.provider = provider
        self.machine = machine
        self.keys = keys
        self.group = group
        self.user = provider.capabilities.user
        self.connections: set[asyncssh.SSHServerConnection] = set()


class _Server(asyncssh.SSHServer):
    """A connection."""

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._target.connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._connection is not None:
            self._target.connections.discard(self._connection)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return username == self._target.user and key.public_data == self._target.keys.user.public_data

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return _Session(self._target)

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> asyncssh.SSHTCPSession[bytes]:
        if dest_host not in _LOOPBACK:
            code = asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
            raise asyncssh.ChannelOpenError(code, "only ports of the machine's own loopback can be reached")
        return _Forwarded(self._target, dest_port)


class _Pipe:
    """A buffer for data that arrives on a channel, with flow control for writes to it."""

    def __init__(self) -> None:
        self.chan: asyncssh.SSHTCPChannel[bytes] | asyncssh.SSHServerChannel[bytes] | None = None
        self._held: list[bytes] = []
        self._size = 0
        self._ended = False
        self._changed = anyio.Event()
        self._writable = anyio.Event()
        self._writable.set()

    def put(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._size > _HIGH and self.chan is not None:
            self.chan.pause_reading()
        self._changed.set()

    def end(self) -> None:
        self._ended = True
        self._changed.set()

    def gone(self) -> None:
        self.chan = None
        self.resume_writing()
        self.end()

    def pause_writing(self) -> None:
        self._writable = anyio.Event()

    def resume_writing(self) -> None:
        self._writable.set()

    async def receive(self) -> bytes:
        """Return the data that has arrived; b"" at the end."""
        while not self._held and not self._ended:
            self._changed = anyio.Event()
            await self._changed.wait()
        data = b"".join(self._held)
        self._held.clear()
        self._size = 0
        if self.chan is not None:
            self.chan.resume_reading()
        return data

    async def send(self, data: bytes, kind: int | None = None) -> None:
        if self.chan is not None and not self.chan.is_closing():
            self.chan.write(data, kind)
            await self._writable.wait()


class _Forwarded(asyncssh.SSHTCPSession[bytes]):
    """A forwarded connection to a port of the guest; a `Connection` for `join_streams`."""

    def __init__(self, target: _Target, port: int) -> None:
        self._target = target
        self._port = port
        self._pipe = _Pipe()
        self.data_received = lambda data, datatype: self._pipe.put(data)  # type: ignore[method-assign]
        self.pause_writing = self._pipe.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self._pipe.resume_writing  # type: ignore[method-assign]

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._pipe.chan = chan

    def session_started(self) -> None:
        self._target.group.start_soon(self._carry, name="a connection by ssh into a guest")

    def eof_received(self) -> bool:
        self._pipe.end()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.gone()

    async def receive(self) -> bytes:
        if data := await self._pipe.receive():
            return data
        if self._pipe.chan is None:
            raise anyio.BrokenResourceError
        raise anyio.EndOfStream

    async def send(self, item: bytes) -> None:
        await self._pipe.send(item)
        if self._pipe.chan is None:
            raise anyio.BrokenResourceError

    async def send_eof(self) -> None:
        if self._pipe.chan is not None:
            self._pipe.chan.write_eof()

    async def _carry(self) -> None:
        chan = self._pipe.chan
        try:
            async with (
                self._target.provider.guest(self._target.machine) as guest,
                guest.open(connect_command(self._port)) as to,
            ):
                await join_streams(self, to)
        except (HiveyardError, anyio.BrokenResourceError) as error:
            log.info("port %d of %s: %s", self._port, self._target.machine, error)
        except Exception:
            log.exception("port %d of %s: a connection failed", self._port, self._target.machine)
        finally:
            if chan is not None:
                chan.close()


class _Session(asyncssh.SSHServerSession[bytes]):
    """A command, a shell or a subsystem."""

    def __init__(self, target: _Target) -> None:
        self._target = target
        self._pipe = _Pipe()
        self._chan: asyncssh.SSHServerChannel[bytes] | None = None
        self._command = Command(argv=("bash", "-l"))
        self._term = ""
        self._resize: Callable[[int, int], None] = lambda rows, columns: None
        self._size = (24, 80)
        self._scope = anyio.CancelScope()
        self.pause_writing = self._pipe.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self._pipe.resume_writing  # type: ignore[method-assign]

    # --- called by asyncssh ------------------------------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._chan = self._pipe.chan = chan

    def pty_requested(
        self, term_type: str | None, term_size: tuple[int, int, int, int], term_modes: Mapping[int, int]
    ) -> bool:
        if not isinstance(self._target.provider, Terminals):
            return False
        self._term = term_type or "xterm"
        self.terminal_size_changed(*term_size)
        return True

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._command = Command(argv=("bash", "-c", command))
        return "\0" not in command

    def subsystem_requested(self, subsystem: str) -> bool:
        self._command = Command(argv=("bash", "-c", _SFTP))
        return subsystem == "sftp"

    def session_started(self) -> None:
        self._target.group.start_soon(self._run, name="a session by ssh in a guest")

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._pipe.put(data)

    def eof_received(self) -> bool:
        self._pipe.end()
        return True

    def terminal_size_changed(self, width: int, height: int, pixwidth: int, pixheight: int) -> None:
        self._size = (height or 24, width or 80)
        self._resize(*self._size)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pipe.gone()
        self._scope.cancel()

    # --- running it --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        status = _FAILED
        chan = self._chan
        assert chan is not None
        with self._scope:
            try:
                status = await (self._on_terminal() if self._term else self._plain())
            except HiveyardError as error:
                await self._pipe.send(f"error: {printable(error.message)}\r\n".encode(), asyncssh.EXTENDED_DATA_STDERR)
            except Exception:
                log.exception("a session by ssh into %s failed", self._target.machine)
        if not chan.is_closing():
            chan.exit(status)

    async def _plain(self) -> int:
        async with self._target.provider.guest(self._target.machine) as guest, guest.open(self._command) as stream:
            return await _talk(self._pipe, stream)

    async def _on_terminal(self) -> int:
        """Run the provider's program for terminals on a hidden terminal of this host."""
        provider = self._target.provider
        assert isinstance(provider, Terminals)
        assert self._command.argv is not None
        command = shown(self._command.argv, term=self._term, colors=self._colors())
        argv = await provider.terminal(self._target.machine, command)
        master, slave = pty.openpty()
        try:
            self._resize = lambda rows, columns: _resize(master, rows, columns)
            self._resize(*self._size)
            os.set_blocking(master, False)
            words = ["setsid", "--ctty", "--wait", *argv]
            async with process.running(words, stdin=slave, stdout=slave, stderr=slave) as child:
                os.close(slave)
                slave = -1
                async with together() as group:
                    group.start_soon(self._keys, master)
                    await self._show(master)
                    status = await child.wait()
                    group.cancel_scope.cancel()
        finally:
            self._resize = lambda rows, columns: None
            anyio.notify_closing(master)
            os.close(master)
            if slave >= 0:
                os.close(slave)
        return 128 - status if status < 0 else status

    def _colors(self) -> str:
        assert self._chan is not None
        value = self._chan.get_environment_bytes().get(b"COLORTERM", b"")
        return one_line(value.decode("utf-8", "replace"), 40)

    async def _keys(self, master: int) -> None:
        # Input that arrives before the program has set the terminal's mode would be echoed twice. Setting raw mode here
        # is no solution: ssh copies the mode of this terminal to the guest.
        while termios.tcgetattr(master)[_LOCAL_MODES] & termios.ICANON:  # noqa: ASYNC110 (a terminal reports no such event)
            await anyio.sleep(0.02)
        while data := await self._pipe.receive():
            left = memoryview(data)
            while left:
                try:
                    left = left[os.write(master, left[:_PIECE]) :]
                except BlockingIOError:
                    await anyio.wait_writable(master)

    async def _show(self, master: int) -> None:
        while True:
            await anyio.wait_readable(master)
            try:
                data = os.read(master, _PIECE)
            except OSError:  # EIO: no process has the other end open any more
                return
            if not data:
                return
            await self._pipe.send(data)


async def _talk(pipe: _Pipe, stream: Stream) -> int:
    """Copy data between a channel and a program until the program ends; return its exit code."""

    async def inward() -> None:
        while data := await pipe.receive():
            await stream.send(data)
        await stream.send_eof()

    async def send(data: bytes, error: bool) -> None:
        await pipe.send(data, asyncssh.EXTENDED_DATA_STDERR if error else None)

    async with together() as group:
        group.start_soon(inward)
        status = await outputs(stream, send)
        group.cancel_scope.cancel()
    return status


def _resize(master: int, rows: int, columns: int) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
