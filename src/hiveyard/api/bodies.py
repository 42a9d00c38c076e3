"""Bodies that only the API uses; the others are the engine's structs."""

from __future__ import annotations

from typing import Annotated

import msgspec

from hiveyard.core import machines
from hiveyard.core.errors import HiveyardError
from hiveyard.core.events import Failure
from hiveyard.engine.sessions.change import SessionChange


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer that reports an error."""

    error: Failure


class Version(msgspec.Struct, frozen=True):
    """The daemon: its version, its process id, and the number of tasks that it runs."""

    version: str
    pid: int
    running: int


class Removed(msgspec.Struct, frozen=True):
    """The id of a thing that was removed."""

    id: str


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt for a session's agent; with `now` it is added to the current turn."""

    text: str
    now: bool = False


class ModelChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model of a session's later turns."""

    model: str


class ResumeRequest(SessionChange, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to resume a session, with changes of its request. `prompt` is its next prompt."""

    prompt: str | None = None


class TurnAccepted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A prompt that was accepted: it is turn `turn` of session `id`, or 0 if it was added to the current turn, or if it
    is the message `message` to a member of the hive."""

    id: str
    turn: int
    message: str = ""


class NapRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request that a member takes no messages for so many seconds, but the operator's."""

    seconds: float


class MailRead(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The ids of messages to the operator that were read."""

    ids: list[str]


class TerminalRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to use the caller's terminal: `term` and `colors` are its TERM and COLORTERM. Without `argv` it shows
    the agent's terminal; `read_only` only shows it."""

    argv: list[str] | None = None
    read_only: bool = False
    term: str = ""
    colors: str = ""


class TerminalProgram(msgspec.Struct, frozen=True):
    """A program of this host that attaches the terminal it runs on to the machine."""

    argv: list[str]


class SnapshotRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to take a snapshot. Without a name it gets one."""

    name: str | None = None


class RewindRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to rewind to a snapshot, by its name or id. `force` detaches users from the terminal first."""

    snapshot: str
    force: bool = False


class ExportRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to export a session to a new file of the host; an absolute path."""

    path: str


class ImportRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to import an exported session; an absolute path. `new` gives it a new id."""

    path: str
    new: bool = False
    name: str | None = None
    provider: str | None = None


class PortRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to forward port `host` of the host's loopback to port `guest` of a machine; null: a free port."""

    guest: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    host: Annotated[int, msgspec.Meta(ge=1, le=65535)] | None = None


class SshConfig(msgspec.Struct, frozen=True):
    """Lines for ~/.ssh/config."""

    text: str


class WebLinkRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request for a link that signs a browser in to the page. A `read_only` one may only look."""

    read_only: bool = False


class WebLink(msgspec.Struct, frozen=True):
    """A link that signs in one browser, once, within a minute."""

    url: str


class WebDevice(msgspec.Struct, frozen=True, kw_only=True):
    """A browser that is signed in to the page. Times are seconds since the epoch; `seen_at` is exact to an hour."""

    id: str
    name: str
    read_only: bool
    created_at: float
    seen_at: float


class BuildLine(msgspec.Struct, frozen=True):
    """A line of progress of an image build."""

    progress: str


class End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a stream. A stream without it was cut."""


class Image(msgspec.Struct, frozen=True):
    """A built image. `size` is in bytes, `programs` has the versions of the agent programs inside."""

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
