"""Facts about ports of the host that lead into a guest."""

from __future__ import annotations

from hiveyard.core.events.body import Body


class PortOpened(Body, frozen=True, kw_only=True, tag="port.opened"):
    """A port of the host leads into the guest. `guest_port` 22 is the way in by ssh."""

    host_port: int
    guest_port: int


class PortClosed(Body, frozen=True, kw_only=True, tag="port.closed"):
    """A port of the host leads into the guest no more."""

    host_port: int


PortEvent = PortOpened | PortClosed
