"""Statuses of Morph Cloud and their meaning. An unknown status is an error state of the machine, not an exception."""

from __future__ import annotations

from typing import Final, NamedTuple

from hiveyard.core.machines import MachineStatus, TtlAction
from hiveyard.kit.text import one_line
from hiveyard.machines.morph import labels
from hiveyard.machines.morph.wire import Instance

SNAPSHOT_READY: Final = "ready"
SNAPSHOT_COMING: Final = "pending"  # `failed`, `deleting`, `deleted` and what is unknown will never be ready


class Status(NamedTuple):
    """Return a machine's status, and the reason if there is one."""

    status: MachineStatus
    reason: str = ""


def ttl_action_of(instance: Instance) -> TtlAction | None:
    """Return the action at the end of the instance's lifetime; None for an unknown one."""
    match instance.ttl.ttl_action:
        case "stop":
            return "terminate"
        case "pause":
            return "stop" if labels.lifetime(instance) == labels.STOPPED else "pause"
    return None


def status_of(instance: Instance, *, booting: bool = False) -> Status:
    """Return the status. `booting`: this process is creating the machine."""
    if booting:
        return Status(MachineStatus.BOOTING)
    match instance.status:
        case "ready" if instance.metadata.get(labels.READY):
            return Status(MachineStatus.READY)
        case "ready" | "pending":
            return Status(MachineStatus.ERROR, "its start was interrupted")
        case "paused" if labels.stopped(instance):
            return Status(MachineStatus.STOPPED)
        case "saving" if labels.stopped(instance):
            return Status(MachineStatus.STOPPING)
        case "paused":
            return Status(MachineStatus.READY, "it is paused")
        case "saving":
            return Status(MachineStatus.READY, "it is being saved")
        case "error":
            return Status(MachineStatus.ERROR, "Morph Cloud says that it failed")
        case unknown:
            return Status(MachineStatus.ERROR, f"Morph Cloud calls it {one_line(unknown, 40)!r}, and that is not known")
