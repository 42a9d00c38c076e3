"""The page's listener: a server on TCP that is started on demand, inside the daemon."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import anyio
from anyio.abc import TaskGroup

from hiveyard.api.server import make_server
from hiveyard.core.errors import PortTaken
from hiveyard.engine.engine import Engine
from hiveyard.hive.members import Members
from hiveyard.kit.clock import Clock
from hiveyard.web.app import make_page
from hiveyard.web.authentication import Names
from hiveyard.web.devices import Devices
from hiveyard.web.seen import Seen
from hiveyard.web.settings import Address, WebSettings
from hiveyard.web.site import Site

log = logging.getLogger(__name__)


class Listener:
    """The page, which listens from the first `hv web` on. While a browser is signed in, each later daemon listens from
    its start: a page that is open finds it again."""

    def __init__(
        self, engine: Engine, members: Members, settings: WebSettings, state: Path, clock: Clock, group: TaskGroup
    ) -> None:
        self.devices = Devices(state / "devices.json", clock)
        self._engine = engine
        self._members = members
        self._settings = settings
        self._state = state
        self._clock = clock
        self._group = group
        self._lock = anyio.Lock()
        self._address: Address | None = None

    async def start(self) -> Address:
        """Listen; return the address. Succeeds if it listens already. Raises PortTaken."""
        async with self._lock:
            if self._address is None:
                listening = _bind(self._settings.address)
                host, port = listening.getsockname()[:2]
                self._address = Address(host, port)
                await self._group.start(self._serve, listening, self._address, name="the page")
            return self._address

    async def start_if_used(self) -> None:
        """Listen if a browser is signed in. A port that is taken is only logged: the daemon works without the page."""
        if not self.devices.list():
            return
        try:
            await self.start()
        except PortTaken as error:
            log.warning("the page is not there: %s", error.message)

    async def link(self, *, read_only: bool) -> str:
        """Return a link that signs in one browser, once, within a minute. Raises PortTaken."""
        address = await self.start()
        host = self._settings.hosts[0] if not self._settings.is_local else address.shown
        return f"http://{host}/login?code={self.devices.make_link(read_only=read_only)}"

    async def _serve(
        self, listening: socket.socket, address: Address, *, task_status: anyio.abc.TaskStatus[None]
    ) -> None:
        """Serve the page. The daemon works without it, so an error is only logged."""
        try:
            with listening:
                await self._run(listening, address, task_status)
        except Exception:
            log.exception("the page ended with an internal error; hv web starts it again")
        self._address = None

    async def _run(self, listening: socket.socket, address: Address, task_status: anyio.abc.TaskStatus[None]) -> None:
        seen = Seen(self._state / "seen.json", await self._engine.history.last_seq())
        site = Site(self._engine, self._members, self.devices, seen, self._clock)
        async with make_page(site, Names(self._settings, address), address) as page:
            log.info("the page is at http://%s", address.shown)
            if not self._settings.is_local:
                log.warning("the page is open to other machines, without encryption: put a proxy with TLS before it")
            task_status.started()
            await make_server(page).serve(sockets=[listening])


def _bind(address: Address) -> socket.socket:
    """Return a listening socket. Raises PortTaken."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise PortTaken(
            f"the page cannot listen on {address.shown}: {error.strerror}",
            hint=f'set another port in config.toml: [web] listen = "127.0.0.1:{address.port + 1}"',
        ) from error
    return listening
