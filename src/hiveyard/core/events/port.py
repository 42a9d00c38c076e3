"""Events of host ports that are forwarded to a guest."""

from __future__ import annotations

from hiveyard.core.events.body import Body


class PortOpened(Body, frozen=True, kw_only=True, tag="port.opened"):
    """A port of the host is forwarded to `guest_port` of the guest; 22 stands for ssh."""

    host_port: int
    guest_port: int


class PortClosed(Body, frozen=True, kw_only=True, tag="port.closed"):
    """A port of the host is no longer forwarded."""

    host_port: int


PortEvent = PortOpened | PortClosed
