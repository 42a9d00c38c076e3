"""Settings of the container provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerSettings:
    """`[docker]` in the settings file."""

    socket: str = ""
    """The engine's unix socket. Empty: DOCKER_HOST, else Docker's default socket, else the user's Podman socket."""
    boot_timeout: float = 60.0
    """Seconds until a container can run a command."""
