"""A container engine for tests and benchmarks: the one that runs here, else one of our own for as long as it is used.

Our own has its data, its sockets and its process ids to itself and touches no firewall and no network of the host.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from aiodocker import Docker

from hiveyard.core.errors import ProviderUnavailable
from hiveyard.machines.docker.engine import find_socket

_START_BUDGET = 60.0
_STOP_BUDGET = 30.0


@dataclass
class _Kept:
    socket: Path
    stack: contextlib.AsyncExitStack
    users: int = 0


_kept: dict[Path, _Kept] = {}


@asynccontextmanager
async def engine_socket(data: Path) -> AsyncIterator[Path]:
    """The socket of an engine that answers. `data` is where our own keeps images from one run to the next.

    Blocks may nest and overlap in one process: they share one engine. Other processes wait for it to end.
    Raises ProviderUnavailable when none runs and none can be started here.
    """
    if found := running_engine():
        yield found
        return
    missing = [tool for tool in ("dockerd", "containerd", "runc", "setpriv") if not shutil.which(tool)]
    if missing or os.geteuid() != 0:
        why = f"{', '.join(missing)} not installed" if missing else "only root can start one"
        raise ProviderUnavailable(f"no container engine runs here, and {why}", hint="sudo apt-get install -y docker.io")
    if data not in _kept:
        stack = contextlib.AsyncExitStack()
        _kept[data] = _Kept(await stack.enter_async_context(_cached_engine(data)), stack)
    kept = _kept[data]
    kept.users += 1
    try:
        yield kept.socket
    finally:
        kept.users -= 1
        if kept.users == 0:
            del _kept[data]
            await kept.stack.aclose()


@asynccontextmanager
async def _cached_engine(data: Path) -> AsyncIterator[Path]:
    data.mkdir(parents=True, exist_ok=True)
    lock = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        await anyio.to_thread.run_sync(fcntl.flock, lock, fcntl.LOCK_EX)
        # The paths of containerd's sockets grow from this one, and a socket's path is at most 107 bytes.
        with tempfile.TemporaryDirectory(prefix="hvd-") as scratch:
            # The engine holds the lock too: when we are killed, the next run waits until it is gone.
            async with own_engine(data, Path(scratch), pass_fds=(lock,)) as found:
                await _sweep(found)
                yield found
    finally:
        os.close(lock)


def running_engine() -> Path | None:
    """The socket of the engine that the user would use, when it answers."""
    try:
        found = find_socket("", os.environ)
    except ProviderUnavailable:
        return None
    return found if _answers(found) else None


@asynccontextmanager
async def own_engine(data: Path, scratch: Path, *, pass_fds: Sequence[int] = ()) -> AsyncIterator[Path]:
    """A private engine for as long as the block lasts: images below `data`, sockets below `scratch` (a short path)."""
    for directory in (data, scratch):
        directory.mkdir(parents=True, exist_ok=True)
    path = scratch / "docker.sock"
    log = data / "dockerd.log"
    # It ends when we are killed.
    argv = [
        "setpriv",
        "--pdeathsig",
        "TERM",
        "dockerd",
        "--data-root",
        str(data / "root"),
        "--exec-root",
        str(scratch / "x"),
    ]
    argv += ["--pidfile", str(scratch / "pid"), "--host", f"unix://{path}", "--group", str(os.getgid())]
    argv += ["--iptables=false", "--ip6tables=false", "--bridge=none"]
    with log.open("wb") as said:
        # Its own `finally` waits for it to end by itself, longer than kit/process gives.
        engine = subprocess.Popen(  # noqa: ASYNC220
            argv,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=pass_fds,
        )
    try:
        with anyio.move_on_after(_START_BUDGET):
            while engine.poll() is None and not _answers(path):  # noqa: ASYNC110 (another program makes it)
                await anyio.sleep(0.05)
        if not _answers(path):
            raise ProviderUnavailable(f"dockerd did not start: {log.read_text()[-1500:]}", hint=f"less {log}")
        yield path
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_stop, engine, scratch, data)


async def _sweep(path: Path) -> None:
    """Containers that a killed run left here are nobody's; the images are what is kept."""
    async with Docker(url=f"unix://{path}") as client:
        for left in await client.containers.list(all=True):
            await left.delete(force=True, v=True)
        await client.volumes.prune()


def _stop(engine: subprocess.Popen[bytes], scratch: Path, data: Path) -> None:
    """It ends its containers and its containerd by itself; what it does not is ended after it."""
    engine.send_signal(signal.SIGTERM)
    try:
        engine.wait(_STOP_BUDGET)
    except subprocess.TimeoutExpired:
        engine.kill()
        engine.wait()
    for pid in _of(scratch):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while any(_of(scratch)) and time.monotonic() < end:
        time.sleep(0.02)
    for place in (scratch, data):
        for mount in _mounts_below(place):
            subprocess.run(["umount", "--lazy", mount], check=False, capture_output=True)


def _of(scratch: Path) -> Iterator[int]:
    """Processes (containerd, its shims) that were started with a path of this engine on their command line."""
    for directory in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(scratch).encode() in (directory / "cmdline").read_bytes():
                yield int(directory.name)


def _mounts_below(place: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return sorted((path for line in lines if (path := line.split()[4]).startswith(f"{place}/")), reverse=True)


def _answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        client.connect(str(path))
        client.sendall(b"GET /_ping HTTP/1.0\r\nHost: engine\r\n\r\n")
        return b" 200 " in client.recv(64)
    return False
