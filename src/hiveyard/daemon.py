"""The daemon: the one place where everything is wired together, and the process that holds it."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
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
from hiveyard.engine.placement.image_stock import ImageStock
from hiveyard.engine.resources import Resources
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

log = logging.getLogger("hiveyard.daemon")
LOG_BYTES = 8 << 20
"""Size at which the log is put aside, in place of the one before."""
LOG_LEVEL = "HIVEYARD_LOG_LEVEL"
"""The environment variable with the level of a daemon that a verb starts."""
LOG_LEVELS = ("debug", "info", "warning", "error")
LEAVING = 20.0
"""Seconds that a daemon which has stopped answering may take to be gone."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until a signal or `hv stop-daemon`. Running agents continue without it."""
    parser = argparse.ArgumentParser(prog="hiveyard.daemon", description="Run Hiveyard's daemon in the foreground.")
    parser.add_argument("--ready-fd", type=int, help="a pipe on which to write `ready`, or a JSON error")
    parser.add_argument("--log-level", choices=LOG_LEVELS, help=f"default: ${LOG_LEVEL}, else info")
    parser.add_argument("-v", "--verbose", action="store_true", help="the same as --log-level debug")
    options = parser.parse_args(argv)
    fd: int | None = options.ready_fd
    # sqlite3 lets go of the interpreter at every step: at Python's own 5 ms a busy loop starves the journal's writer.
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
        told = error if isinstance(error, HiveyardError) else HiveyardError(f"the daemon failed: {error}")
        ready.say(json.dumps({"code": told.code, "message": told.message, "hint": told.hint}))
        return 1
    return 0


class Ready:
    """The pipe on which the CLI waits to hear, once, how the start went. No child of ours keeps it open."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_inheritable(fd, False)

    @property
    def awaited(self) -> bool:
        return self._fd is not None

    def say(self, text: str) -> None:
        """Only the first word counts; the one who waited may be gone."""
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
    here = default_paths()
    settings = config.load(here)
    environment = config.environment()
    # From here on no child of ours inherits a key.
    config.forget_secrets()
    with _only_one(here), bind(here.socket) as listener:
        async with resources(here, settings, environment) as parts, _mirrored(parts), running(parts) as engine:
            try:
                await _answer(engine, listener, here, ready)
            finally:
                # While we hold the lock: afterwards it would be the socket of the next daemon.
                here.socket.unlink(missing_ok=True)


@asynccontextmanager
async def resources(here: Paths, settings: config.Settings, environment: Mapping[str, str]) -> AsyncIterator[Resources]:
    """Everything the engine needs, open for as long as the block lasts."""
    _check_agents(settings.agents, here)
    clock = SystemClock()
    for directory in (here.data, here.run, here.sessions, here.doors):
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = Keys(environment, here.keys)
    others = with_external(_providers(here, settings, keys), here, settings.external, environment)
    # It is part of what the disk is to keep free, and so never more than that.
    ballast = min(BALLAST, settings.engine.disk_reserve_mib << 20)
    async with others as providers, open_store(here.database, clock=clock, ballast=ballast) as store:

        async def record(session: str, turn: int | None, event: DoorEvent | Notice) -> None:
            await store.append(session, event, turn=turn)

        async with Doors(from_environment(settings.door, environment), keys, record, clock=clock) as doors:
            yield Resources(
                event_log=EventLog(store, clock),
                providers=providers,
                manager=Detached(),
                terminals=Tmux(),
                images=ImageStock(Images(here.cache), providers, settings.engine),
                doors=doors,
                keys=keys,
                settings=settings.engine,
                agents=settings.agents,
                ports=settings.ports,
                host_ports=HostPorts(host_ports_directory()),
                ssh_keys=SshKeys(here.ssh),
                clock=clock,
                sessions=here.sessions,
                door_directory=here.doors,
            )


def _check_agents(sections: Iterable[str], here: Paths) -> None:
    known = [*agents.names(), *plugins.names("hiveyard.agents", agents.names())]
    for name in sections:
        if name not in known:
            raise BadSetting(
                f"{here.config}: agents.{name}: no agent is called that", hint=f"one of: {', '.join(known)}"
            )


@asynccontextmanager
async def _mirrored(parts: Resources) -> AsyncIterator[None]:
    """Each session's events.jsonl, kept equal to the journal."""

    def file(session: str) -> Path | None:
        workspace = parts.workspace(session)
        return workspace.events if workspace.exists else None

    async with anyio.create_task_group() as group:
        await group.start(mirror, parts.event_log.store, file)
        yield
        group.cancel_scope.cancel()


def _providers(here: Paths, settings: config.Settings, keys: Keys) -> Mapping[str, Provider]:
    own = {
        "qemu": settings.qemu,
        "docker": settings.docker,
        "bubblewrap": settings.bubblewrap,
        "morph": settings.morph,
    }
    return {
        name: machines.by_name(
            name, here.machines / name, here.cache / name, settings=chosen, key=lambda: keys.find("morph")
        )
        for name, chosen in own.items()
    }


async def _answer(engine: Engine, listener: socket.socket, here: Paths, ready: Ready) -> None:
    server: uvicorn.Server | None = None

    def shut_down() -> None:
        assert server is not None
        server.should_exit = True
        # Who comes now starts the next daemon, which waits until we are gone.
        here.socket.unlink(missing_ok=True)

    server = make_server(make_app(engine, shut_down))
    async with anyio.create_task_group() as group:
        group.start_soon(_until_signal, shut_down, name="signals")
        log.info("hiveyard %s on %s, pid %d", __version__, here.socket, os.getpid())
        if ready.awaited:
            ready.say("ready")
        else:
            print(f"hiveyard {__version__} on {here.socket}; Ctrl-C stops it", file=sys.stderr)  # noqa: T201
        await server.serve(sockets=[listener])
        group.cancel_scope.cancel()
    log.info("stopped")


async def _until_signal(shut_down: Callable[[], None]) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            shut_down()


@contextmanager
def _only_one(here: Paths) -> Iterator[None]:
    until = time.monotonic() + LEAVING
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(locked(here.lock, wait=False))
                break
            except BlockingIOError:
                # One that has taken its socket away is on its way out.
                if here.socket.exists() or time.monotonic() > until:
                    raise DaemonRunning(f"another daemon holds {here.lock}", hint="hv stop-daemon") from None
                time.sleep(0.1)
        yield


if __name__ == "__main__":
    sys.exit(main())
