"""Events of an orchestrator: facts in the past tense, one small struct each. They contain no secret."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec
import structlog
from structlog.processors import KeyValueRenderer

from hiveyard.core.events import DoorEvent, Notice
from hiveyard.core.machines import TtlAction


class RuntimeEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """An event of a machine. `type` in its JSON is the snake case name that `docs/build.md` lists."""

    machine: str


class BootStarted(RuntimeEvent, frozen=True, tag="boot_started"):
    """A machine is about to be made.

    `snapshot` and `parent` are empty if it is made from its image. `parent` is the machine that the provider forks in
    one step."""

    provider: str
    image: str
    snapshot: str = ""
    parent: str = ""


class BootProgress(RuntimeEvent, frozen=True, tag="boot_progress"):
    """A long step of the provider has begun. `line` says which."""

    line: str


class BootReady(RuntimeEvent, frozen=True, tag="boot_ready"):
    """The machine runs commands, `seconds` after `boot_started`."""

    seconds: float


class RealSecretAnnounced(RuntimeEvent, frozen=True, tag="real_secret_announced"):
    """A profile is about to install a real secret in the guest. `line` says which, and where."""

    line: str


class CredentialsInstalled(RuntimeEvent, frozen=True, tag="credentials_installed"):
    """A profile was installed in the guest and read back."""

    profile: str
    paths: tuple[str, ...]
    real: bool
    checked: bool


class MachineInfoWritten(RuntimeEvent, frozen=True, tag="machine_info_written"):
    """The file `.machine.json` was written."""

    path: str


class _Failed(RuntimeEvent, frozen=True):
    operation: str
    code: str
    reason: str


class PreparationFailed(_Failed, frozen=True, tag="preparation_failed"):
    """The machine cannot be used. `operation` failed."""


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
    """A model was called through the machine's door, or the door refused a request."""

    fact: DoorEvent | Notice


class ProcessStopped(RuntimeEvent, frozen=True, tag="process_stopped"):
    """A process was stopped."""

    process: str
    exit_code: int | None


class SnapshotTaken(RuntimeEvent, frozen=True, tag="snapshot_taken"):
    """A snapshot of the machine and its session directory was taken. The machine continues."""

    snapshot: str


class LifetimeOver(RuntimeEvent, frozen=True, tag="lifetime_over"):
    """The machine's `ttl_seconds` are over. `action` starts now."""

    action: TtlAction


class OperationFailed(_Failed, frozen=True, tag="operation_failed"):
    """An operation without a caller failed: a removal after a failure, or the action of a ttl."""


class MachineKept(RuntimeEvent, frozen=True, tag="machine_kept"):
    """An operation failed and the machine was kept, because of `keep_on_error` or because its process existed
    before."""


class MachineTerminated(RuntimeEvent, frozen=True, tag="machine_terminated"):
    """The machine was removed."""


Listener = Callable[[RuntimeEvent], None]
"""A callback for events. It is called with each event, in order, on the event loop, and must not block."""

# With the logging of the standard library, which hides `info` by default.
_log = structlog.wrap_logger(logging.getLogger("hiveyard.library"), processors=[KeyValueRenderer(key_order=["event"])])


def log(event: RuntimeEvent) -> None:
    """Write an event to the log `hiveyard.library`: the default Listener of an orchestrator."""
    fields = msgspec.to_builtins(event)
    name = fields.pop("type")
    (_log.warning if isinstance(event, _Failed) else _log.info)(name, **fields)
