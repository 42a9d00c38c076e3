"""Starting QEMU: with descriptors instead of paths, as an unprivileged user, and outliving us or not.

QEMU opens nothing by a host path: directories and sockets are opened here and handed over. So it needs no way through
the daemon's private directories, a path of any length or with any character does no harm, and a control socket takes
connections before QEMU has started.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from anyio.abc import ByteReceiveStream, Process

from hiveyard.core.errors import BootFailed, MachineLost, NoSpace, ProviderUnavailable, SocketPathTooLong
from hiveyard.kit import process
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.qemu.vm import Vm, seen

_LONGEST_PATH = 100  # of 108 bytes


# All that it finds in its environment. Whatever else is in ours, keys first of all, is not for a program that a guest
# works hard to get into.
_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")

# A child of nobody. All programs on the way to QEMU replace one another, so the shell's pid is QEMU's.
_OUTLIVE = ("setsid", "--fork", "--", "sh", "-c", 'echo $$; exec "$@" >/dev/null', "sh")


class NotLoaded(MachineLost):
    """The frozen state that a machine begins from does not load."""


class StateRefused(BootFailed):
    """The same, with what QEMU said of it. Another state may load."""


class Handles:
    """Descriptors for one process to inherit. Closed here at the end of the block, or as soon as it has them."""

    def __init__(self) -> None:
        self.fds: list[int] = []

    def __enter__(self) -> Handles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        while self.fds:
            os.close(self.fds.pop())

    def directory(self, path: Path) -> str:
        """A directory, as a path that works in the process whoever it runs as."""
        return f"/proc/self/fd/{self._keep(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))}"

    def opened(self, fd: int) -> str:
        """Add a descriptor that is open already; it is closed with the others."""
        return f"/proc/self/fd/{self._keep(fd)}"

    def file(self, path: Path) -> str:
        """A file to read, likewise."""
        return f"/proc/self/fd/{self._keep(os.open(path, os.O_RDONLY | os.O_CLOEXEC))}"

    def pair(self) -> tuple[int, int]:
        """Two connected sockets: one for another process, which the caller closes, and one for this."""
        one, other = socket.socketpair()
        return one.detach(), self._keep(other.detach())

    def listener(self, path: Path) -> int:
        """A listening unix socket, made at `path`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.ExitStack() as stack:
            stack.callback(listener.close)
            with short(path) as name:
                listener.bind(name)
            listener.listen(4)
            stack.pop_all()
        return self._keep(listener.detach())

    def closing(self, fd: int) -> int:
        """A descriptor as it is; it is closed with the others."""
        return self._keep(fd)

    def _keep(self, fd: int) -> int:
        self.fds.append(fd)
        return fd


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for a socket's path that fits into a socket address, good while the block lasts."""
    if len(os.fsencode(path)) <= _LONGEST_PATH:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        through = f"/proc/self/fd/{directory}/{path.name}"
        if len(os.fsencode(through)) > _LONGEST_PATH or not Path("/proc/self/fd").exists():
            raise SocketPathTooLong(f"{path} is too long for a socket", hint="set HIVEYARD_HOME to a shorter path")
        yield through
    finally:
        os.close(directory)


class Launched:
    """A process that was started. What it says on stderr is kept, at most a pipe full: no guest can make QEMU fill a
    disk."""

    def __init__(self, vm: Vm, fd: int, stdout: ByteReceiveStream | None) -> None:
        self.vm = vm
        self.stdout = stdout
        self._fd = fd

    def read(self) -> str:
        return _said(self._fd)

    async def error(self, label: str, cause: MachineLost) -> BootFailed | NoSpace:
        """The error for a process with which `cause` happened before it was ready: what it said, or, when it has not
        ended, that. Its sockets close a moment before its end, so that is waited for."""
        ended = await self.vm.gone(within=1.0)
        if not ended and not isinstance(cause, NotLoaded):
            return BootFailed(f"QEMU for {label} did not come up: {cause.message}", hint=cause.hint)
        said = self.read()
        if "No space left" in said:
            return NoSpace(f"QEMU for {label} found no disk space: {said}", hint="df -h")
        said = said or f"it {'ended' if ended else 'runs on'} and said nothing"
        if isinstance(cause, NotLoaded):
            return StateRefused(f"QEMU for {label}: {cause.message}: {said}", hint="hv doctor")
        return BootFailed(f"QEMU for {label} did not start: {said}")


@asynccontextmanager
async def launched(
    argv: Sequence[str], handles: Handles, *, cwd: Path, outlive: bool, stdout: int = subprocess.DEVNULL
) -> AsyncIterator[Launched]:
    """Start a program. With `outlive` it goes on when the block, or we, end; else it ends with the block.

    Raises ProviderUnavailable when it is not installed, BootFailed when the host can start no program.
    """
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with ExitStack() as pipe:
        pipe.callback(os.close, read)
        async with AsyncExitStack() as stack:
            try:
                words = [*_OUTLIVE, *argv] if outlive else argv
                stdout = subprocess.PIPE if outlive else stdout
                env = {name: os.environ[name] for name in _KEPT if name in os.environ}
                running = process.running(
                    words, stdout=stdout, stderr=write, cwd=cwd, env=env, pass_fds=handles.fds, grace=0.0
                )
                child = await stack.enter_async_context(running)
            except FileNotFoundError as error:
                raise ProviderUnavailable(f"{error.filename} is not installed", hint="make setup") from error
            except OSError as error:
                raise _unstartable(words[0], error.strerror or str(error)) from error
            finally:
                os.close(write)
                # Not held here any more, its sockets close when it ends, and whoever waits at them learns it.
                handles.close()
            pid = child.pid
            if outlive:
                pid = await _announced(child, read)
                await stack.aclose()
            vm = seen(pid) or Vm(pid, -1, "")
            yield Launched(vm, read, child.stdout)


def _said(fd: int) -> str:
    try:
        return one_line(decode(os.read(fd, 64 << 10)), 1000)
    except BlockingIOError:
        return ""


def _unstartable(program: str, why: str) -> BootFailed:
    return BootFailed(f"{program} could not be started: {why}", hint="ulimit -u; ps -e | wc -l")


async def _announced(child: Process, stderr: int) -> int:
    """The pid that the shell of a process which outlives us says is its own. Raises BootFailed when there is none: a
    host whose process table is full."""
    assert child.stdout is not None
    said = b""
    async for piece in child.stdout:
        said += piece
    await child.wait()
    if not said.strip().isdigit():
        raise _unstartable(_OUTLIVE[0], _said(stderr) or "it ended and said nothing")
    return int(said)
