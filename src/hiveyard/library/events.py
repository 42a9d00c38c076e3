"""What an orchestrator tells while it works: facts in the past tense, one small struct each, with no secret in them."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import structlog
from structlog.processors import KeyValueRenderer

from hiveyard.core.events import DoorEvent, Notice
from hiveyard.core.machines import TtlAction


class RuntimeEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Something that happened to a machine. Its `type` in JSON is the snake case name that `docs/build.md` lists."""

    machine: str


class BootStarted(RuntimeEvent, frozen=True, tag="boot_started"):
    """`snapshot` and `parent` are empty for a machine that is made from its image; `parent` is the machine where one
    goes on that its provider forks in one step."""

    provider: str
    image: str
    snapshot: str = ""
    parent: str = ""


class BootProgress(RuntimeEvent, frozen=True, tag="boot_progress"):
    """A long step of the provider has begun; `line` says which."""

    line: str


class BootReady(RuntimeEvent, frozen=True, tag="boot_ready"):
    """A command can be run in it, `seconds` after `boot_started`."""

    seconds: float


class RealSecretAnnounced(RuntimeEvent, frozen=True, tag="real_secret_announced"):
    """A profile is about to put a real secret into the guest; `line` says which, and where."""

    line: str


class CredentialsInstalled(RuntimeEvent, frozen=True, tag="credentials_installed"):
    """A profile is in the guest and was read back."""

    profile: str
    paths: tuple[str, ...]
    real: bool
    checked: bool


class MachineInfoWritten(RuntimeEvent, frozen=True, tag="machine_info_written"):
    path: str


class _Failed(RuntimeEvent, frozen=True):
    operation: str
    code: str
    reason: str


class PreparationFailed(_Failed, frozen=True, tag="preparation_failed"):
    """The machine is not of use; `operation` is what failed."""


class SessionStarted(RuntimeEvent, frozen=True, tag="session_started"):
    """An agent's process runs."""

    process: str
    agent: str
    manager: str
    pid: int | None


class SessionFailed(_Failed, frozen=True, tag="session_failed"):
    """An agent's process could not be started."""

    process: str


class DoorReported(RuntimeEvent, frozen=True, tag="door_reported"):
    """A model was asked through the machine's door, or something was refused there."""

    fact: DoorEvent | Notice


class ProcessStopped(RuntimeEvent, frozen=True, tag="process_stopped"):
    process: str
    exit_code: int | None


class SnapshotTaken(RuntimeEvent, frozen=True, tag="snapshot_taken"):
    """The machine is kept as it stood, with its session directory, and goes on."""

    snapshot: str


class LifetimeOver(RuntimeEvent, frozen=True, tag="lifetime_over"):
    """Its `ttl_seconds` are over; `action` is done now."""

    action: TtlAction


class OperationFailed(_Failed, frozen=True, tag="operation_failed"):
    """Something that nobody waits for could not be done: the removal after a failure, the action of a ttl."""


class MachineKept(RuntimeEvent, frozen=True, tag="machine_kept"):
    """It failed and is left as it is, because `keep_on_error` was asked for."""


class MachineTerminated(RuntimeEvent, frozen=True, tag="machine_terminated"):
    pass


Listener = Callable[[RuntimeEvent], None]
"""Called with each event, in order, on the event loop: it must not block."""

# By the logging of the standard library, which says nothing of `info` until somebody asks for it.
_log = structlog.wrap_logger(logging.getLogger("hiveyard.library"), processors=[KeyValueRenderer(key_order=["event"])])


def log(event: RuntimeEvent) -> None:
    """The Listener of an orchestrator that was given none: a line in the log `hiveyard.library`."""
    fields = msgspec.to_builtins(event)
    name = fields.pop("type")
    (_log.warning if isinstance(event, _Failed) else _log.info)(name, **fields)
