"""Define the lines of the protocol of docs/external-provider.md. This module does no I/O."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec

from hiveyard.core.errors import BadInput, HasRetryAfter, HiveyardError, ProviderBadAnswer, ProviderError
from hiveyard.core.machines import Capabilities, MachineStatus, Tier, TtlAction, WorkspaceKind
from hiveyard.kit.text import one_line

PROTOCOL = 1
LINE_LIMIT = 1 << 20
"""Maximum length of a line in both directions, in bytes."""
PIECE = 64 << 10
"""Maximum input of a command in one line, in bytes."""
WINDOW = 256 << 10
"""Initial credit of each stream of a command, in bytes."""
_SHOWN = 400
_NO_DATE = 253_402_300_800
"""The first second of the year 10000, where the range of dates ends."""


class Result(msgspec.Struct, frozen=True, tag_field="type", tag="result"):
    id: int
    value: msgspec.Raw = msgspec.Raw(b"null")


class Failed(msgspec.Struct, frozen=True, tag_field="type", tag="error"):
    id: int
    code: str
    message: str
    hint: str = ""
    retry_after: float | None = None


class Reported(msgspec.Struct, frozen=True, tag_field="type", tag="report"):
    id: int
    line: str


class Started(msgspec.Struct, frozen=True, tag_field="type", tag="started"):
    id: int


class Output(msgspec.Struct, frozen=True, tag_field="type", tag="output"):
    id: int
    stream: Literal["stdout", "stderr"]
    data: bytes


class End(msgspec.Struct, frozen=True, tag_field="type", tag="end"):
    id: int
    stream: Literal["stdout", "stderr"]


class Credit(msgspec.Struct, frozen=True, tag_field="type", tag="credit"):
    id: int
    bytes: int


class Exited(msgspec.Struct, frozen=True, tag_field="type", tag="exit"):
    id: int
    status: int


Line = Result | Failed | Reported | Started | Output | End | Credit | Exited
_LINE: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


class Can(msgspec.Struct, frozen=True, kw_only=True):
    """The capabilities in a hello."""

    home: str = "/home/agent"
    user: str = "agent"
    session: str = "/session"
    door_url: str = ""
    remote: bool = True

    def capabilities(self) -> Capabilities:
        return Capabilities(
            home=self.home,
            user=self.user,
            session=self.session,
            workspace=WorkspaceKind.CARRIED if self.remote else WorkspaceKind.DIRECTORY,
            door_url=self.door_url,
            closes_network=not self.remote,
            costs_money=self.remote,
        )


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    protocol: int
    tier: Tier
    capabilities: Can = Can()


Date = Annotated[float, msgspec.Meta(ge=0, lt=_NO_DATE)]
"""In seconds since the epoch."""


class MachineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A machine."""

    name: str
    status: MachineStatus
    image: str = ""
    created_at: Date = 0.0
    reason: str = ""
    metadata: dict[str, str] = {}
    ends_at: Date | None = None
    ttl_action: TtlAction | None = None


class Works(msgspec.Struct, frozen=True, kw_only=True):
    ok: bool
    detail: str
    fix: str = ""


def parse(line: bytes) -> Line:
    """Decode a line of the program. Raises ProviderBadAnswer."""
    try:
        return _LINE.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProviderBadAnswer(f"it said {one_line(repr(line[:120]), 160)}: {one_line(str(error))}") from None


def line(id: int, type: str, fields: dict[str, object]) -> bytes:
    """Encode a line for the program. Raises BadInput if it is too long."""
    encoded = msgspec.json.encode({"id": id, "type": type, **fields}) + b"\n"
    if len(encoded) > LINE_LIMIT:
        raise BadInput(f"{type} takes {len(encoded)} bytes, at most {LINE_LIMIT} fit in a line")
    return encoded


def _tree(kind: type[HiveyardError]) -> Iterator[type[HiveyardError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def failure(who: str, said: Failed) -> HiveyardError:
    """Return the error that a program reported. The message contains a code that is not one of a provider's."""
    kinds = {kind.code: kind for root in (ProviderError, BadInput) for kind in _tree(root)}
    message = one_line(said.message, _SHOWN) or "it did not say why"
    hint = one_line(said.hint, _SHOWN)
    kind = kinds.get(said.code)
    if kind is None:
        return ProviderError(f"{who}: {message} ({one_line(said.code, 40)})", hint=hint)
    if issubclass(kind, HasRetryAfter):
        return kind(f"{who}: {message}", hint=hint, retry_after=said.retry_after)
    return kind(f"{who}: {message}", hint=hint)
