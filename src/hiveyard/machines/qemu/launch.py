"""Start QEMU with descriptors instead of paths, as an unprivileged user, bound to this process or independent of it.

QEMU opens nothing by a host path: directories and sockets are opened here, and QEMU inherits them. So it needs no
access to the daemon's private directories, paths may have any length and any character, and a control socket accepts
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
from hiveyard.machines.qemu.vm import Vm, find_process

_LONGEST_PATH = 100  # of 108 bytes


# The only variables that QEMU gets. The rest of the daemon's environment, keys above all, must not be in a process
# that a guest may try to take over.
_ENV = ("PATH", "HOME", "LANG", "TMPDIR", "LD_LIBRARY_PATH")

# Detaches the process from this one. Each program execs the next one up to QEMU, so the shell's pid is QEMU's.
_OUTLIVE = ("setsid", "--fork", "--", "sh", "-c", 'echo $$; exec "$@" >/dev/null', "sh")


class NotLoaded(MachineLost):
    """The frozen state that a machine starts from does not load."""


class StateRefused(BootFailed):
    """A NotLoaded with QEMU's message. Another state may load."""


class Handles:
    """Descriptors for one process to inherit. They are closed here once the process has them, or at the end of the
    block."""

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
        """Open a directory. Return a path to it that works in the process, whichever user it runs as."""
        return f"/proc/self/fd/{self.inherit(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))}"

    def file(self, path: Path) -> str:
        """Open a file for reading. Return a path to it as `directory` does."""
        return f"/proc/self/fd/{self.inherit(os.open(path, os.O_RDONLY | os.O_CLOEXEC))}"

    def listener(self, path: Path) -> int:
        """Create a listening unix socket at `path`."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        with contextlib.ExitStack() as stack:
            stack.callback(listener.close)
            with short_path(path) as name:
                listener.bind(name)
            listener.listen(4)
            stack.pop_all()
        return self.inherit(listener.detach())

    def inherit(self, fd: int) -> int:
        """Add an open descriptor; it is closed with the others."""
        self.fds.append(fd)
        return fd


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Provide a path to a socket that fits into a socket address. It is valid inside the block."""
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
    """A process that was started. Its stderr goes to a pipe, which holds a limited amount: no guest can make QEMU fill
    a disk with it."""

    def __init__(self, vm: Vm, fd: int, stdout: ByteReceiveStream | None) -> None:
        self.vm = vm
        self.stdout = stdout
        self._fd = fd

    def read(self) -> str:
        """Return the output on stderr so far."""
        return _read_stderr(self._fd)

    async def error(self, label: str, cause: MachineLost) -> BootFailed | NoSpace:
        """Return the error for a process that failed with `cause` before it was ready, with its own message if it has
        ended. Its sockets close a moment before it ends, so wait for the end."""
        ended = await self.vm.wait_ended(within=1.0)
        if not ended and not isinstance(cause, NotLoaded):
            return BootFailed(f"QEMU for {label} did not start: {cause.message}", hint=cause.hint)
        printed = self.read()
        if "No space left" in printed:
            return NoSpace(f"QEMU for {label} found no disk space: {printed}", hint="df -h")
        printed = printed or f"it {'exited' if ended else 'still runs'} and printed nothing"
        if isinstance(cause, NotLoaded):
            return StateRefused(f"QEMU for {label}: {cause.message}: {printed}", hint="hv doctor")
        return BootFailed(f"QEMU for {label} did not start: {printed}")


@asynccontextmanager
async def launched(
    argv: Sequence[str], handles: Handles, *, cwd: Path, outlive: bool, stdout: int = subprocess.DEVNULL
) -> AsyncIterator[Launched]:
    """Start a program. With `outlive` it keeps running after the block and after this process, otherwise it ends with
    the block.

    Raises ProviderUnavailable if it is not installed, BootFailed if the host cannot start programs.
    """
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    with ExitStack() as pipe:
        pipe.callback(os.close, read)
        async with AsyncExitStack() as stack:
            try:
                words = [*_OUTLIVE, *argv] if outlive else argv
                stdout = subprocess.PIPE if outlive else stdout
                env = {name: os.environ[name] for name in _ENV if name in os.environ}
                running = process.running(
                    words, stdout=stdout, stderr=write, cwd=cwd, env=env, pass_fds=handles.fds, grace=0.0
                )
                child = await stack.enter_async_context(running)
            except FileNotFoundError as error:
                raise ProviderUnavailable(f"{error.filename} is not installed", hint="make setup") from error
            except OSError as error:
                raise _start_failed(words[0], error.strerror or str(error)) from error
            finally:
                os.close(write)
                # Only the process has its sockets now. They close when it ends, which wakes those that wait on them.
                handles.close()
            pid = child.pid
            if outlive:
                pid = await _detached_pid(child, read)
                await stack.aclose()
            vm = find_process(pid) or Vm(pid, -1, "")
            yield Launched(vm, read, child.stdout)


def _read_stderr(fd: int) -> str:
    try:
        return one_line(decode(os.read(fd, 64 << 10)), 1000)
    except BlockingIOError:
        return ""


def _start_failed(program: str, reason: str) -> BootFailed:
    return BootFailed(f"{program} could not be started: {reason}", hint="ulimit -u; ps -e | wc -l")


async def _detached_pid(child: Process, stderr: int) -> int:
    """Return the pid that the shell of a detached process prints. Raises BootFailed if there is none, as on a host
    whose process table is full."""
    assert child.stdout is not None
    printed = b""
    async for piece in child.stdout:
        printed += piece
    await child.wait()
    if not printed.strip().isdigit():
        raise _start_failed(_OUTLIVE[0], _read_stderr(stderr) or "it exited and printed nothing")
    return int(printed)
