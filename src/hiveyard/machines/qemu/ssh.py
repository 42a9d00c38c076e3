"""Run commands over ssh: one connection per machine, which is kept, and one channel per command.

The host key is pinned. All forks of a template have the template's host key. That is safe, because QEMU holds the port
on the host's loopback for its whole life: if the QEMU process is alive after the connection was made, it is the one
that was reached. In addition the machine has a key of its own, which no other machine accepts.
"""

from __future__ import annotations

import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import asyncssh

from hiveyard.core.errors import CannotExecute, GuestDisconnected, MachineLost, ProviderError
from hiveyard.machines.qemu.vm import Vm

_WORD_LIMIT = 100_000  # Linux allows 131,072 bytes for one word of a command line
_BUFFER_HIGH, _BUFFER_LOW = 1 << 20, 256 << 10
_CLOSE_TIMEOUT = 0.2
_EXIT_TIMEOUT = 2.0  # seconds between the end of QEMU's sockets and of its process
_ALIVE_SECONDS, _ALIVE_COUNT = 30, 10


class Link(asyncssh.SSHClient):
    """The connection to one machine."""

    def __init__(
        self, name: str, vm: Vm, pids: int, key: asyncssh.SSHKey, key_accepted: Callable[[], Awaitable[None]]
    ) -> None:
        self.name = name
        self.vm = vm
        self._pids = pids
        self._key: asyncssh.SSHKey | None = key
        self._key_accepted = key_accepted
        self._connection: asyncssh.SSHClientConnection | None = None

    @property
    def open(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def public_key_auth_requested(self) -> asyncssh.SSHKey | None:
        # The key exchange, which is most of the work, runs while the guest is still being personalized.
        await self._key_accepted()
        key, self._key = self._key, None
        return key

    def attached(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            await self._connection.wait_closed()

    async def _is_closing(self) -> bool:
        """Return whether the connection is closed or about to be: asyncssh refuses channels a while before that."""
        assert self._connection is not None
        with anyio.move_on_after(_CLOSE_TIMEOUT):
            await self._connection.wait_closed()
        return not self.open

    async def lost(self) -> MachineLost:
        """Return the error for a broken connection. A QEMU that dies closes its sockets before its process is gone."""
        if await self.vm.wait_ended(within=_EXIT_TIMEOUT):
            return MachineLost(f"machine {self.name} is gone: its QEMU process has ended", machine=self.name)
        return GuestDisconnected(f"the connection to machine {self.name} broke", machine=self.name)

    @asynccontextmanager
    async def run(self, argv: Sequence[str]) -> AsyncIterator[Channel]:
        """Run a program in the guest. Raises MachineLost, GuestDisconnected, CannotExecute."""
        command, env = _words(argv, self._pids)
        channel = Channel(self.lost)
        try:
            assert self._connection is not None
            made, _ = await self._connection.create_session(lambda: channel, command, env=env, encoding=None)  # type: ignore[arg-type]
        except asyncssh.ChannelOpenError as error:
            if await self._is_closing():
                raise await self.lost() from error
            raise CannotExecute(f"machine {self.name} cannot start one more program", machine=self.name) from error
        except (asyncssh.Error, OSError) as error:
            raise await self.lost() from error
        try:
            yield channel
        finally:
            made.close()


@asynccontextmanager
async def _translated(link: Link) -> AsyncIterator[None]:
    try:
        yield
    except (asyncssh.HostKeyNotVerifiable, asyncssh.PermissionDenied) as error:
        raise MachineLost(f"another machine answers in place of {link.name}: {error}", machine=link.name) from error
    except (asyncssh.Error, OSError) as error:
        lost = await link.lost()
        raise type(lost)(f"{lost.message}: {error}", **lost.context) from error


async def connect(
    name: str,
    vm: Vm,
    port: int,
    *,
    pids: int,
    key: asyncssh.SSHKey,
    host_key: str,
    key_accepted: Callable[[], Awaitable[None]],
) -> Link:
    """Connect to machine `name`, where each command may have `pids` processes. Wait for `key_accepted` before the key
    is offered. Raises MachineLost, GuestDisconnected."""
    link = Link(name, vm, pids, key, key_accepted)
    async with _translated(link):
        # asyncio, because asyncssh supports nothing else. The algorithms are listed to avoid the post-quantum ones,
        # which cost an emulated guest a tenth of a second, for a connection that never leaves this host.
        connection = await asyncssh.connect(
            "127.0.0.1",
            port,
            username="agent",
            client_factory=lambda: link,
            known_hosts=([asyncssh.import_public_key(host_key)], [], []),
            server_host_key_algs=["ssh-ed25519"],
            kex_algs=["curve25519-sha256"],
            encryption_algs=["aes128-gcm@openssh.com"],
            compression_algs=None,
            preferred_auth=["publickey"],
            agent_path=None,
            client_keys=None,
            config=None,
            keepalive_interval=_ALIVE_SECONDS,
            keepalive_count_max=_ALIVE_COUNT,
            login_timeout=0,
        )
    link.attached(connection)
    if not vm.alive:
        await link.close()
        raise await link.lost()
    return link


class Channel(asyncssh.SSHClientSession[bytes]):
    """A program that runs in the guest over ssh; a Stream."""

    def __init__(self, lost: Callable[[], Awaitable[ProviderError]]) -> None:
        self._lost = lost
        self._chan: asyncssh.SSHClientChannel[bytes] | None = None
        self._buffered: dict[int | None, list[bytes]] = {None: [], asyncssh.EXTENDED_DATA_STDERR: []}
        self._size = 0
        self._ended = False
        self._status: int | None = None
        self._changed = anyio.Event()
        self._writable = anyio.Event()
        self._writable.set()

    # Called by asyncssh.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._chan = chan

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._buffered.setdefault(datatype, []).append(data)
        self._size += len(data)
        if self._size > _BUFFER_HIGH and self._chan is not None:
            self._chan.pause_reading()
        self._notify()

    def eof_received(self) -> bool:
        self._end()
        return True  # keeps the other direction open: the program may still read

    def exit_status_received(self, status: int) -> None:
        self._status = status
        self._notify()

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._status = 128 + _SIGNALS.get(signal, 9)
        self._notify()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._chan = None
        self._end()

    def pause_writing(self) -> None:
        self._writable = anyio.Event()

    def resume_writing(self) -> None:
        self._writable.set()

    # Called by the guest.

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), _BUFFER_HIGH):
            if self._chan is None or self._chan.is_closing():
                return
            try:
                self._chan.write(data[start : start + _BUFFER_HIGH])
            except (BrokenPipeError, OSError):
                return
            await self._writable.wait()

    async def send_eof(self) -> None:
        if self._chan is not None and not self._chan.is_closing():
            self._chan.write_eof()

    async def receive(self) -> bytes:
        return await self._take(None)

    async def receive_error(self) -> bytes:
        return await self._take(asyncssh.EXTENDED_DATA_STDERR)

    async def wait(self) -> int:
        while self._status is None:
            if self._chan is None:
                raise await self._lost()
            await self._next()
        return self._status

    async def _take(self, kind: int | None) -> bytes:
        while not self._buffered[kind]:
            if self._ended:
                return b""
            await self._next()
        data = b"".join(self._buffered[kind])
        self._buffered[kind].clear()
        self._size -= len(data)
        if self._size < _BUFFER_LOW and self._chan is not None:
            self._chan.resume_reading()
        return data

    async def _next(self) -> None:
        await self._changed.wait()

    def _notify(self) -> None:
        # Wakes those that wait now, and nobody that waits later.
        self._changed.set()
        self._changed = anyio.Event()

    def _end(self) -> None:
        self._ended = True
        self._notify()


_SIGNALS = {"HUP": 1, "INT": 2, "QUIT": 3, "ILL": 4, "TRAP": 5, "ABRT": 6, "FPE": 8, "KILL": 9, "SEGV": 11, "PIPE": 13,
            "ALRM": 14, "TERM": 15, "USR1": 10, "USR2": 12}  # fmt: skip


def _words(argv: Sequence[str], pids: int) -> tuple[bytes, dict[str, bytes]]:
    """Return the command for the guest's shell, and variables that carry it if it is too long for one word."""
    line = shlex.join(argv).encode("utf-8", "surrogateescape")
    # SSH_CLIENT would make bash read ~/.bashrc before every command.
    # sshd is exempt from the OOM killer and from the limit of processes, a command is not.
    before = b"unset SSH_CLIENT SSH_CONNECTION;echo 0 >/proc/self/oom_score_adj;ulimit -p %d;" % pids
    if len(line) <= _WORD_LIMIT:
        return before + b"exec " + line, {}
    pieces = [line[start : start + _WORD_LIMIT] for start in range(0, len(line), _WORD_LIMIT)]
    names = [f"HV_WORDS_{number}" for number in range(len(pieces))]
    joined = "".join(f"${name}" for name in names)
    command = before + f'eval "unset {" ".join(names)}; exec {joined}"'.encode()
    return command, dict(zip(names, pieces, strict=True))
