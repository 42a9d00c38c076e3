"""The daemon process: it creates all parts of Hiveyard and connects them."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

import anyio
import uvicorn

from hiveyard import __version__, agents, config, machines, plugins
from hiveyard.api.app import make_app
from hiveyard.api.server import bind, make_server
from hiveyard.core.errors import BadSetting, DaemonRunning, HiveyardError
from hiveyard.core.events import DoorEvent, Notice
from hiveyard.core.ports import Provider
from hiveyard.discovery import with_external
from hiveyard.door.descriptors import raise_limit
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import from_environment
from hiveyard.engine.access.host_ports import HostPorts
from hiveyard.engine.access.ssh_keys import SshKeys
from hiveyard.engine.engine import Engine, running
from hiveyard.engine.event_log import EventLog
from hiveyard.engine.placement.admission import Admission
from hiveyard.engine.placement.image_stock import ImageStock
from hiveyard.engine.resources import Resources
from hiveyard.hive.hive import Hive
from hiveyard.hive.mcp_server import served
from hiveyard.hive.members import Members
from hiveyard.hive.wake_loop import running as running_hive
from hiveyard.images.images import Images
from hiveyard.kit import event_loop
from hiveyard.kit.clock import SystemClock
from hiveyard.kit.files import locked
from hiveyard.kit.group import first
from hiveyard.paths import Paths, default_paths, host_ports_directory
from hiveyard.processes.detached import Detached
from hiveyard.processes.tmux import Tmux
from hiveyard.store.ballast import BALLAST
from hiveyard.store.database import open_store
from hiveyard.store.mirror import mirror
from hiveyard.web.control import add_control
from hiveyard.web.listener import Listener
from hiveyard.web.settings import WebSettings

log = logging.getLogger("hiveyard.daemon")
LOG_BYTES = 8 << 20
"""Size at which the log is rotated. One older part is kept."""
LOG_LEVEL = "HIVEYARD_LOG_LEVEL"
"""The environment variable with the level of a daemon that a verb starts."""
LOG_LEVELS = ("debug", "info", "warning", "error")
SHUTDOWN_LIMIT = 20.0
"""Seconds that a daemon which no longer answers may take to end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until a signal or `hv stop-daemon`. Running agents continue without it."""
    parser = argparse.ArgumentParser(prog="hiveyard.daemon", description="Run Hiveyard's daemon in the foreground.")
    parser.add_argument("--ready-fd", type=int, help="a pipe on which to write `ready`, or a JSON error")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help=f"default: ${LOG_LEVEL}, else info")
    parser.add_argument("-v", "--verbose", action="store_true", help="the same as --log-level debug")
    options = parser.parse_args(argv)
    fd: int | None = options.ready_fd
    # What the imports made stays until the end: no collection has to look at it, and the last one least of all.
    gc.freeze()
    # sqlite3 releases the interpreter lock at every step: with Python's default of 5 ms a busy event loop starves the
    # journal's writer.
    sys.setswitchinterval(0.0005)
    os.umask(0o022)
    raise_limit()
    ready = Ready(fd)
    try:
        level = "debug" if options.verbose else options.log_level or _level_of(config.environment())
        _log_to(default_paths().log if fd is not None else None, level)
        anyio.run(_serve, ready, backend_options=event_loop.OPTIONS)
    except Exception as raised:
        error = first(raised)
        if fd is None and isinstance(error, HiveyardError):
            raise error from raised
        log.exception("the daemon ends: %s", error)
        known = error if isinstance(error, HiveyardError) else HiveyardError(f"the daemon failed: {error}")
        ready.report(json.dumps({"code": known.code, "message": known.message, "hint": known.hint}))
        return 1
    return 0


class Ready:
    """The pipe that tells the waiting CLI, once, how the start went. Child processes do not inherit it."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    @property
    def awaited(self) -> bool:
        return self._fd is not None

    def report(self, text: str) -> None:
        """Write the message. Only the first call does so; the reader may have ended."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        with suppress(BrokenPipeError), os.fdopen(fd, "w") as pipe:
            pipe.write(text)


def _level_of(environment: Mapping[str, str]) -> str:
    level = environment.get(LOG_LEVEL, "").lower() or "info"
    if level not in LOG_LEVELS:
        raise BadSetting(f"{LOG_LEVEL} is {level!r}", hint=f"one of: {', '.join(LOG_LEVELS)}")
    return level


def _log_to(file: Path | None, level: str) -> None:
    """Log to a file of bounded size, or to stderr. `level` is for Hiveyard's own messages: libraries would log headers
    at level debug."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = RotatingFileHandler(file, maxBytes=LOG_BYTES, backupCount=1)
    number = logging.getLevelNamesMapping()[level.upper()]
    layout = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), format=layout)
    logging.getLogger("hiveyard").setLevel(number)
    for chatty in ("asyncssh", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


async def _serve(ready: Ready) -> None:
    paths = default_paths()
    settings = config.load(paths)
    environment = config.environment()
    # From here on no child process inherits a key.
    config.forget_secrets()
    with _single_instance(paths), bind(paths.socket) as listener:
        async with AsyncExitStack() as stack:
            parts = await stack.enter_async_context(resources(paths, settings, environment))
            hive = Hive(parts, settings.hive, paths.hive)
            # Before the engine opens the doors of sessions that are running.
            await stack.enter_async_context(served(hive, parts.doors, parts.clock))
            await stack.enter_async_context(_mirrored(parts))
            engine = await stack.enter_async_context(running(parts))
            members = await stack.enter_async_context(running_hive(hive, engine, parts))
            try:
                await _answer(engine, members, listener, paths, ready, settings.web)
            finally:
                # While the lock is held: later it would be the socket of the next daemon.
                paths.socket.unlink(missing_ok=True)


@asynccontextmanager
async def resources(
    paths: Paths, settings: config.Settings, environment: Mapping[str, str]
) -> AsyncIterator[Resources]:
    """Yield everything that the engine needs, open for as long as the block lasts."""
    _check_agents(settings.agents, paths)
    clock = SystemClock()
    for directory in (paths.data, paths.run, paths.sessions, paths.doors):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = Keys(environment, paths.keys)
    others = with_external(_providers(paths, settings, keys), paths, settings.external, environment)
    # The ballast is part of the disk's reserve, so it is never larger.
    ballast = min(BALLAST, settings.engine.disk_reserve_mib << 20)
    journal = settings.store.url or paths.database
    async with others as providers, open_store(journal, clock=clock, ballast=ballast) as store:

        async def record(session: str, turn: int | None, event: DoorEvent | Notice) -> None:
            await store.append(session, event, turn=turn)

        async with Doors(from_environment(settings.door, environment), keys, record, clock=clock) as doors:
            event_log = EventLog(store, clock)
            yield Resources(
                event_log=event_log,
                providers=providers,
                manager=Detached(),
                terminals=Tmux(),
                images=ImageStock(Images(paths.cache), providers, settings.engine),
                doors=doors,
                keys=keys,
                settings=settings.engine,
                agents=settings.agents,
                ports=settings.ports,
                host_ports=HostPorts(host_ports_directory()),
                admission=Admission(event_log, settings.engine),
                ssh_keys=SshKeys(paths.ssh),
                clock=clock,
                sessions=paths.sessions,
                door_directory=paths.doors,
            )


def _check_agents(sections: Iterable[str], paths: Paths) -> None:
    known = [*agents.names(), *plugins.names("hiveyard.agents", agents.names())]
    for name in sections:
        if name not in known:
            raise BadSetting(
                f"{paths.config}: agents.{name}: no agent has this name", hint=f"one of: {', '.join(known)}"
            )


@asynccontextmanager
async def _mirrored(parts: Resources) -> AsyncIterator[None]:
    """Keep each session's events.jsonl equal to the journal."""

    def file(session: str) -> Path | None:
        workspace = parts.workspace(session)
        return workspace.events if workspace.exists else None

    async with anyio.create_task_group() as group:
        await group.start(mirror, parts.event_log.store, file)
        yield
        group.cancel_scope.cancel()


def _providers(paths: Paths, settings: config.Settings, keys: Keys) -> Mapping[str, Provider]:
    own = {
        "qemu": settings.qemu,
        "docker": settings.docker,
        "bubblewrap": settings.bubblewrap,
        "morph": settings.morph,
    }
    return {
        name: machines.by_name(
            name, paths.machines / name, paths.cache / name, settings=chosen, key=lambda: keys.find("morph")
        )
        for name, chosen in own.items()
    }


async def _answer(
    engine: Engine, members: Members, listener: socket.socket, paths: Paths, ready: Ready, web: WebSettings
) -> None:
    server: uvicorn.Server | None = None

    def shut_down() -> None:
        assert server is not None
        server.should_exit = True
        # The next verb starts a new daemon, which waits until this one has ended.
        paths.socket.unlink(missing_ok=True)

    app = make_app(engine, members, shut_down)
    server = make_server(app)
    async with anyio.create_task_group() as group:
        page = Listener(engine, members, web, paths.web, SystemClock(), group)
        add_control(app, page)
        await page.start_if_used()
        group.start_soon(_until_signal, shut_down, name="signals")
        log.info("hiveyard %s on %s, pid %d", __version__, paths.socket, os.getpid())
        if ready.awaited:
            ready.report("ready")
        else:
            print(f"hiveyard {__version__} on {paths.socket}; Ctrl-C stops it", file=sys.stderr)  # noqa: T201
        await server.serve(sockets=[listener])
        group.cancel_scope.cancel()
    log.info("stopped")


async def _until_signal(shut_down: Callable[[], None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            shut_down()


@contextmanager
def _single_instance(paths: Paths) -> Iterator[None]:
    until = time.monotonic() + SHUTDOWN_LIMIT
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(paths.lock, wait=False))
                break
            except BlockingIOError:
                # A daemon without a socket is about to end.
                if paths.socket.exists() or time.monotonic() > until:
                    raise DaemonRunning(f"another daemon holds {paths.lock}", hint="hv stop-daemon") from None
                time.sleep(0.1)
        yield


if __name__ == "__main__":
    sys.exit(main())
