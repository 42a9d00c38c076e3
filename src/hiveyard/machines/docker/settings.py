"""What may be set about the container provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerSettings:
    """`[machines.docker]` in the settings file."""

    socket: str = ""
    """The engine's unix socket; empty takes DOCKER_HOST, else Docker's own place, else the user's Podman."""
    boot_timeout: float = 60.0
    """Seconds a container may take until a command can be run in it."""
