"""Find the container engine at a unix socket, connect to it, and translate its errors to ours.

Docker Engine and Podman have the same API. Nothing here knows machines.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from hiveyard.core.errors import NoMemory, NoSpace, ProviderError, ProviderUnavailable
from hiveyard.kit.text import one_line

_UNREACHABLE = 900  # aiodocker's status when nothing answers
_START = "sudo apt-get install -y docker.io && sudo systemctl start docker"
_OLDEST_API = (1, 40)


class About(NamedTuple):
    """The engine's description of itself. `cpus` is how many processors containers can use."""

    name: str
    version: str
    api: str
    cpus: int
    rootless: bool
    limits: tuple[str, ...]

    @property
    def podman(self) -> bool:
        return self.name == "Podman Engine"


class Engine:
    """One engine. With `socket` "" it is searched at each connection, because it may be started after the daemon."""

    def __init__(self, socket: str) -> None:
        self._named = socket
        self._about: About | None = None

    @property
    def socket(self) -> Path:
        """The engine's socket. Raises ProviderUnavailable if there is none that this user may use."""
        return find_socket(self._named, os.environ)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Docker]:
        """Return a client, which is closed at the end of the block. Raises ProviderUnavailable."""
        path = self.socket
        api = f"v{self._about.api}" if self._about else "auto"
        # No limit: each running command keeps a connection of its own.
        connector = aiohttp.UnixConnector(str(path), limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            # With its own connector, the client uses the URL only for the headers.
            yield Docker(url="unix://localhost", connector=connector, session=session, api_version=api)

    async def about(self) -> About:
        """Return the engine's description. Raises ProviderUnavailable if it does not answer or is too old."""
        if self._about is None:
            async with self.connect() as client:
                with engine_errors("asking the container engine"):
                    self._about = _read_about(await client.version(), await client.system.info())
        return self._about


def find_socket(named: str, env: Mapping[str, str]) -> Path:
    """Return the socket of the setting, else of DOCKER_HOST, else the first usable one. Raises ProviderUnavailable."""
    host = env.get("DOCKER_HOST", "")
    if not named and host and not host.startswith(("unix://", "/")):
        raise ProviderUnavailable(
            f"DOCKER_HOST is {one_line(host, 80)}: only engines at a unix socket can share directories",
            hint="unset DOCKER_HOST",
        )
    if chosen := named or host:
        return _usable(Path(chosen.removeprefix("unix://")).expanduser())
    runtime = env.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    places = [Path("/var/run/docker.sock"), Path(runtime) / "podman" / "podman.sock"]
    if os.geteuid() == 0:
        places.append(Path("/run/podman/podman.sock"))
    return first_usable(places)


def first_usable(places: Sequence[Path]) -> Path:
    """Return the first socket that this user may use. Raises ProviderUnavailable, about the first that exists."""
    refused: ProviderUnavailable | None = None
    for place in filter(_is_socket, places):
        try:
            return _usable(place)
        except ProviderUnavailable as error:
            refused = refused or error
    raise refused or ProviderUnavailable(
        f"no container engine: {' and '.join(map(str, places))} do not exist", hint=_START
    )


def _is_socket(path: Path) -> bool:
    try:
        return path.is_socket()
    except OSError:  # such as a directory of another user
        return False


def _usable(path: Path) -> Path:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ProviderUnavailable(f"no container engine at {path}: {error.strerror}", hint=_START) from None
    if not stat.S_ISSOCK(mode):
        raise ProviderUnavailable(f"{path} is not a socket: no container engine there", hint=_START)
    if not os.access(path, os.W_OK):
        raise ProviderUnavailable(
            f"this user may not use the container engine at {path}", hint="sudo usermod -aG docker $USER; newgrp docker"
        )
    return path


def _read_about(version: Mapping[str, object], info: Mapping[str, object]) -> About:
    parts = version.get("Components")
    first = parts[0] if isinstance(parts, list) and parts and isinstance(parts[0], dict) else {}
    name = str(first.get("Name") or "Engine")
    api = str(version.get("ApiVersion") or "0")
    options = info.get("SecurityOptions")
    limits = {"memory": "MemoryLimit", "cpus": "CpuCfsQuota", "processes": "PidsLimit"}
    about = About(
        name=name if name == "Podman Engine" else "Docker Engine",
        version=str(version.get("Version") or "?"),
        api=api,
        cpus=max(1, _number(info.get("NCPU"))),
        rootless=isinstance(options, list) and "name=rootless" in options,
        limits=tuple(what for what, key in limits.items() if info.get(key)),
    )
    if tuple(map(_number, api.split("."))) < _OLDEST_API:
        raise ProviderUnavailable(f"{about.name} {about.version} has API {api}; 1.40 is the oldest that is supported")
    return about


def _number(value: object) -> int:
    return int(value) if isinstance(value, int) or (isinstance(value, str) and value.isdigit()) else 0


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Translate errors of the engine, and of the connection to it, inside the block. `doing` describes the attempt."""
    try:
        yield
    except DockerError as error:
        raise translate(error, doing) from error
    except (TimeoutError, aiohttp.ClientError, ConnectionError, FileNotFoundError) as error:
        raise ProviderUnavailable(
            f"{doing}: the container engine does not answer: {error}", hint="hv doctor"
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise NoSpace(f"{doing}: no space left", hint="docker system df") from error
        raise


def translate(error: DockerError, doing: str) -> ProviderError:
    message = one_line(str(error.message), 400)
    low = message.lower()
    if error.status == _UNREACHABLE:
        return ProviderUnavailable(f"{doing}: {message}", hint="hv doctor")
    if "no space left" in low or "disk quota exceeded" in low:
        return NoSpace(f"{doing}: the engine has no space left: {message}", hint="docker system df")
    if "cannot allocate memory" in low or "out of memory" in low:
        return NoMemory(f"{doing}: the engine has no memory left: {message}", hint="free -m")
    return ProviderError(f"{doing}: the engine answered {error.status}: {message}")
