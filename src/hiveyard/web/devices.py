"""The browsers that are signed in, and the links that sign them in.

Only hashes are kept: of a link in memory, for a minute; of a cookie in a file, for 30 days.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from pathlib import Path

import msgspec

from hiveyard.core.errors import NotFound
from hiveyard.kit.clock import Clock
from hiveyard.kit.files import write_atomic
from hiveyard.kit.names import new_id
from hiveyard.kit.text import one_line

log = logging.getLogger(__name__)
LINK_SECONDS = 60.0
COOKIE_DAYS = 30
_COOKIE_SECONDS = COOKIE_DAYS * 86400.0
_SEEN_STEP = 3600.0
"""Seconds between two records of a device's use."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that is signed in. `hash` is that of its cookie. Times are seconds since the epoch."""

    id: str
    name: str
    hash: str
    read_only: bool
    created_at: float
    seen_at: float


class _Link(msgspec.Struct, frozen=True):
    read_only: bool
    until: float


class Devices:
    """The signed-in browsers, in a file that only the daemon's user can read."""

    def __init__(self, file: Path, clock: Clock) -> None:
        self._file = file
        self._clock = clock
        self._links: dict[str, _Link] = {}
        self._devices = {device.id: device for device in _read(file)}

    def list(self) -> list[Device]:
        """Return the devices whose cookie is valid, the newest first."""
        oldest = self._clock.now() - _COOKIE_SECONDS
        valid = [device for device in self._devices.values() if device.created_at > oldest]
        return sorted(valid, key=lambda device: -device.created_at)

    def make_link(self, *, read_only: bool) -> str:
        """Return the code of a link that signs in one browser, once, within a minute."""
        now = self._clock.now()
        self._links = {hash: link for hash, link in self._links.items() if link.until > now}
        code = secrets.token_urlsafe(24)
        self._links[_hash(code)] = _Link(read_only, now + LINK_SECONDS)
        return code

    def sign_in(self, code: str, name: str) -> str | None:
        """Use a link; return the cookie of a new device, or None for a link that was used, is late or unknown."""
        link = self._links.pop(_hash(code), None)
        now = self._clock.now()
        if link is None or link.until <= now:
            return None
        cookie = secrets.token_urlsafe(32)
        device = Device(
            id=new_id(),
            name=one_line(name, 80) or "a browser",
            hash=_hash(cookie),
            read_only=link.read_only,
            created_at=now,
            seen_at=now,
        )
        self._devices = {one.id: one for one in (*self.list(), device)}
        self._write()
        return cookie

    def find(self, cookie: str) -> Device | None:
        """Return the device with this cookie, and record that it was used."""
        hash = _hash(cookie)
        device = next((one for one in self.list() if secrets.compare_digest(one.hash, hash)), None)
        if device is not None and self._clock.now() - device.seen_at > _SEEN_STEP:
            device = msgspec.structs.replace(device, seen_at=self._clock.now())
            self._devices[device.id] = device
            self._write()
        return device

    def is_valid(self, id: str) -> bool:
        """Return whether a device is still signed in."""
        return any(device.id == id for device in self.list())

    def revoke(self, ref: str) -> Device:
        """Sign a device out, by its id or the start of it. Raises NotFound."""
        found = [device for device in self.list() if ref and device.id.startswith(ref)]
        if len(found) != 1:
            problem = "several devices begin with" if found else "there is no device"
            raise NotFound(f"{problem} {one_line(ref, 40)!r}", hint="hv web devices")
        del self._devices[found[0].id]
        self._write()
        return found[0]

    def _write(self) -> None:
        write_atomic(self._file, msgspec.json.encode(list(self._devices.values())), mode=0o600)


def _hash(secret: str) -> str:
    # The secrets are random and long: nothing is gained by a slow hash.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _read(file: Path) -> list[Device]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=list[Device])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s cannot be read, and every browser has to sign in again: %s", file, error)
        return []
