"""Bodies that only the API has; the others are the engine's own structs."""

from __future__ import annotations

from typing import Annotated

import msgspec

from hiveyard.core import machines
from hiveyard.core.errors import HiveyardError
from hiveyard.core.events import Failure
from hiveyard.engine.run_spec import Dollars


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer that is not a success."""

    error: Failure


class Version(msgspec.Struct, frozen=True):
    """The daemon: its version, process id, and how many tasks it is working on."""

    version: str
    pid: int
    running: int


class Removed(msgspec.Struct, frozen=True):
    """What is gone."""

    id: str


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an agent is to do next."""

    text: str


class ResumeAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A session that is to go on. `budget_usd` is what it may spend in all from now on; null: as before."""

    budget_usd: Dollars | None = None


class TurnTaken(msgspec.Struct, frozen=True):
    """A prompt that was taken: it is turn `turn` of session `id`."""

    id: str
    turn: int


class TerminalAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A person's terminal: its TERM and COLORTERM. Without `argv` it shows the agent's own; `read_only` only looks."""

    argv: list[str] | None = None
    read_only: bool = False
    term: str = ""
    colors: str = ""


class TerminalProgram(msgspec.Struct, frozen=True):
    """A program of this host that gives the terminal it is run on to the machine."""

    argv: list[str]


class SnapshotAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A snapshot to be taken. Without a name it gets one."""

    name: str | None = None


class RewindAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A snapshot to go back to, by its name or id. `force`: whoever sits at the terminal is thrown out."""

    snapshot: str
    force: bool = False


class ExportAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the host that is to be made; an absolute path."""

    path: str


class ImportAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An exported session to be taken in; an absolute path. `new` gives it an id of its own."""

    path: str
    new: bool = False
    name: str | None = None
    provider: str | None = None


class PortAsked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Port `guest` of a machine, to be reached at port `host` of the host's loopback; null: one that is free."""

    guest: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    host: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None


class SshConfig(msgspec.Struct, frozen=True):
    """Lines for ~/.ssh/config."""

    text: str


class BuildLine(msgspec.Struct, frozen=True):
    """Where a build is."""

    progress: str


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Nothing follows: a stream that ends without it was cut."""


class Image(msgspec.Struct, frozen=True):
    """An image that is built. `size` is bytes, `programs` the versions of the agent programs inside."""

    id: str
    name: str
    size: int
    created_at: float
    programs: dict[str, str]


def problem(error: HiveyardError) -> Problem:
    return Problem(Failure(code=error.code, message=error.message, hint=error.hint))


def built(image: machines.Image) -> Image:
    return Image(
        id=image.id, name=image.name, size=image.size, created_at=image.created_at, programs=dict(image.programs)
    )
