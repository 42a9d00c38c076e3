"""Define the messages of Morph Cloud. Unused fields are ignored; a missing or malformed one is an error.

Statuses stay texts: the service may have new ones; see statuses.py.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_NO_DATE = 253_402_300_800
"""The first second of the year 10000, where the range of dates ends."""


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base image of the service."""

    id: str
    name: str


class Bases(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Base]


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A port of an instance with an internet address."""

    name: str
    port: int
    url: str


class Networking(msgspec.Struct, frozen=True, kw_only=True):
    http_services: list[Service] = []


Date = Annotated[int, msgspec.Meta(ge=0, lt=_NO_DATE)]
"""In seconds since the epoch."""


class Ttl(msgspec.Struct, frozen=True, kw_only=True):
    """The end of an instance's lifetime, if there is one, and the service's name for the action then."""

    ttl_expire_at: Date | None = None
    ttl_action: str | None = None


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """An instance. `metadata` are our labels; see labels.py."""

    id: str
    created: Date
    status: str = "pending"
    networking: Networking
    metadata: dict[str, str] = {}
    ttl: Ttl = Ttl()


class Instances(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Instance]


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    status: str
    metadata: dict[str, str] = {}


class Snapshots(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Snapshot]


class Branched(msgspec.Struct, frozen=True, kw_only=True):
    instances: list[Instance]


class Executed(msgspec.Struct, frozen=True, kw_only=True):
    stdout: str
    stderr: str
    exit_code: int


class SshKey(msgspec.Struct, frozen=True, kw_only=True):
    """The ssh key for one instance. `password` decrypts it if it is encrypted."""

    private_key: str
    password: str = ""

    def __repr__(self) -> str:
        return "SshKey(***)"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a command that is streamed: a piece of `stdout` or `stderr`, or the `exit_code`."""

    type: str
    content: str | int = ""


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error: a text, or a list of problems with fields."""

    detail: Any = None
    message: Any = None

    def words(self) -> str:
        """Return the error message, or an empty text."""
        if isinstance(self.detail, list):
            return "; ".join(_violation(one) for one in self.detail[:5])
        said = self.detail or self.message
        return said if isinstance(said, str) else ""


def _violation(one: object) -> str:
    if not isinstance(one, dict):
        return str(one)
    place = one.get("loc")
    where = ".".join(str(part) for part in place) if isinstance(place, list) else ""
    return f"{where}: {one.get('msg', '')}" if where else str(one.get("msg", ""))
