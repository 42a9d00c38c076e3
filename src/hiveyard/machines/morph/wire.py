"""Messages of Morph Cloud, as far as they are used. Other fields are ignored; a missing or malformed one is an error.

Statuses stay texts: the service may have new ones; see statuses.py.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_NO_DATE = 253_402_300_800
"""The first second of the year 10000, in which a calendar ends."""


class Base(msgspec.Struct, frozen=True, kw_only=True):
    """A base image of the service."""

    id: str
    name: str


class Bases(msgspec.Struct, frozen=True, kw_only=True):
    data: list[Base]


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A port of an instance that has an address on the internet."""

    name: str
    port: int
    url: str


class Networking(msgspec.Struct, frozen=True, kw_only=True):
    http_services: list[Service] = []


Date = Annotated[int, msgspec.Meta(ge=0, lt=_NO_DATE)]
"""In seconds since the epoch; what is no date is no answer."""


class Ttl(msgspec.Struct, frozen=True, kw_only=True):
    """When the service ends an instance, if it does, and what it calls that."""

    ttl_expire_at: Date | None = None
    ttl_action: str | None = None


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """`metadata` is what we gave it; see labels.py."""

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
    """The way into one instance by ssh. Where the key is locked, `password` unlocks it."""

    private_key: str
    password: str = ""

    def __repr__(self) -> str:
        return "SshKey(***)"


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a command that is streamed: a piece of `stdout` or `stderr`, or the `exit_code`."""

    type: str
    content: str | int = ""


class Complaint(msgspec.Struct, frozen=True, kw_only=True):
    """The body of an error, in whatever form: a text, or a list of what is wrong with which field."""

    detail: Any = None
    message: Any = None

    def words(self) -> str:
        """Return the message of the complaint; empty when it has none."""
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
