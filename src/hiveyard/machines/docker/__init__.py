"""Run machines of tier `container` with Docker Engine or Podman."""

from hiveyard.machines.docker.provider import DockerProvider
from hiveyard.machines.docker.settings import DockerSettings

__all__ = ["DockerProvider", "DockerSettings"]
