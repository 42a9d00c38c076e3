"""Events of machines."""

from __future__ import annotations

from hiveyard.core.events.body import Body, Failure


class MachineBooting(Body, frozen=True, kw_only=True, tag="machine.booting"):
    """A machine was requested."""

    machine: str
    provider: str


class MachineReady(Body, frozen=True, kw_only=True, tag="machine.ready"):
    """The machine runs commands. `seconds` is how long that took."""

    machine: str
    seconds: float = 0.0


class MachineStopping(Body, frozen=True, kw_only=True, tag="machine.stopping"):
    """The machine is being removed."""

    machine: str


class MachineStopped(Body, frozen=True, kw_only=True, tag="machine.stopped"):
    """The machine was removed as requested."""

    machine: str


class MachineFailed(Body, frozen=True, kw_only=True, tag="machine.failed"):
    """The machine did not start, or it died. `failure` has the details."""

    machine: str
    failure: Failure


MachineEvent = MachineBooting | MachineReady | MachineStopping | MachineStopped | MachineFailed
