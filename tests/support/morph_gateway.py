"""The ssh gateway of the fake Morph Cloud: it finds the instance by the user's name, lets in who has that instance's
key, and runs commands as root on a terminal of the instance's own."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import asyncssh
from anyio.abc import Process

from tests.support.morph_cloud import Cloud, Instance

_UNLOCK, _PEER = 0x40045431, 0x5441  # TIOCSPTLCK, TIOCGPTPEER
_LAST_WORDS = 0.5  # seconds


@asynccontextmanager
async def gateway(cloud: Cloud) -> AsyncIterator[tuple[str, str]]:
    """Its address, and its host key as in known_hosts."""
    key = asyncssh.generate_private_key("ssh-ed25519")

    async def sit(process: asyncssh.SSHServerProcess[bytes]) -> None:
        instance = cloud.instances[process.get_extra_info("username")]
        await _Sitting(instance, process).run()

    async with await asyncssh.listen(
        "127.0.0.1",
        0,
        server_host_keys=[key],
        server_factory=lambda: _Door(cloud),
        process_factory=sit,
        line_editor=False,
        encoding=None,
    ) as server:
        yield f"127.0.0.1:{server.get_port()}", key.export_public_key("openssh").decode().strip()


class _Door(asyncssh.SSHServer):
    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        instance = self._cloud.instances.get(username)
        return instance is not None and instance.status == "ready" and instance.key.convert_to_public() == key


class _Sitting:
    """Somebody's command on a terminal."""

    def __init__(self, instance: Instance, process: asyncssh.SSHServerProcess[bytes]) -> None:
        self._vm = instance.vm
        self._process = process
        devices = os.open(f"/proc/{instance.vm.pid}/root/dev/pts", os.O_PATH | os.O_DIRECTORY)
        self._master = os.open("ptmx", os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK, dir_fd=devices)
        os.close(devices)
        fcntl.ioctl(self._master, _UNLOCK, struct.pack("i", 0))

    async def run(self) -> None:
        columns, rows, *_ = self._process.term_size
        self._resize(rows, columns)
        slave = fcntl.ioctl(self._master, _PEER, os.O_RDWR | os.O_NOCTTY)
        words = ["setsid", "--ctty", "bash", "-c", self._process.command or "exec bash -l"]
        child = await anyio.open_process(
            self._vm.entering(words), stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        async with anyio.create_task_group() as group:
            group.start_soon(self._listen, child)
            async with anyio.create_task_group() as showing:
                showing.start_soon(self._show)
                await child.wait()
                showing.cancel_scope.deadline = anyio.current_time() + _LAST_WORDS
            group.cancel_scope.cancel()
        self._hang_up()
        await self._leave(child)

    async def _leave(self, child: Process) -> None:
        code = await child.wait()
        if self._vm.alive:
            self._process.exit(128 - code if code < 0 else code)
        else:
            self._process.get_extra_info("connection").abort()

    async def _show(self) -> None:
        """Until nobody in the instance has the terminal any more, or nobody looks."""
        with suppress(OSError, anyio.ClosedResourceError, asyncssh.Error):
            while True:
                await anyio.wait_readable(self._master)
                self._process.stdout.write(os.read(self._master, 65536))
                await self._process.stdout.drain()

    async def _listen(self, child: Process) -> None:
        """Until the person goes away: then the command is hung up on."""
        while True:
            try:
                typed = await self._process.stdin.read(4096)
            except asyncssh.TerminalSizeChanged as changed:
                self._resize(changed.height, changed.width)
                continue
            except (OSError, asyncssh.Error):
                break
            if not typed:
                break
            await self._type(typed)
        self._hang_up()

    async def _type(self, typed: bytes) -> None:
        while typed and self._master >= 0:
            try:
                typed = typed[os.write(self._master, typed) :]
            except BlockingIOError:
                await anyio.wait_writable(self._master)

    def _resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _hang_up(self) -> None:
        if self._master >= 0:
            master, self._master = self._master, -1
            anyio.notify_closing(master)
            os.close(master)
