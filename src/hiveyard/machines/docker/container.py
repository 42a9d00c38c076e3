"""Build the configuration of a container from a machine's spec. Nothing here talks to an engine."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from aiodocker.types import JSONValue

from hiveyard.core.machines import Capabilities, Image, MachineSpec, Network

REPOSITORY = "localhost/hiveyard"  # Podman names local images like this, and it cannot be a registry's name
INSTALLATION, MACHINE, IMAGE, CREATED, PIDS, METADATA = (
    f"hiveyard.{word}" for word in ("installation", "machine", "image", "created", "pids", "metadata")
)
TRIAL = "trial"
"""The installation label of trial containers."""
CONFINE = "/run/hiveyard-confine"
CONFINED = (CONFINE, "/usr/bin/env", "--")
"""The first words of every program in a container. env looks it up in PATH."""
GUEST_UID = 1000
"""The user of our images."""

_DOOR, _DOOR_PORT = "/run/hiveyard", 8377
_MIB = 1 << 20
_TRIAL_LIFETIME = 60  # seconds; a trial takes one
_TMPFS_SHARE = 4  # of the machine's memory, for each of /tmp, /var/tmp and /dev/shm

# Process 1: signals from inside do not reach it. It reaps orphans and forwards connections to the door.
# Connections wait up to 5 minutes for the door while the daemon restarts.
# When the process table is full, socat and this bash exit because they cannot fork. The bash then executes a new one,
# which needs no fork, and tries again until socat runs. Bash catches signals while it has a trap on EXIT, so they are
# ignored.
_INIT = r"""
door=$1 port=$2 again=$3
[[ $again ]] || exec 9<> <(:)
rest() { read -r -t "$1" -u 9; }
serve() {
  socat "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr,backlog=128" \
    "UNIX-CONNECT:$door/door.sock,retry=3000,interval=0.1" </dev/null >/dev/null 2>&1 9<&- &
}
listening() { local line; while read -r line; do [[ $line == *$1* ]] && return; done </proc/net/tcp; return 1; }
if [[ $door && ! $again ]]; then
  type -P socat >/dev/null || { echo "the image has no socat"; exit 1; }
  serve
  printf -v address '0100007F:%04X 00000000:0000 0A' "$port"
  until listening "$address"; do rest 0.003; done
fi
echo ready
exec >/dev/null 2>&1
trap '' HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM PROF SYS
trap 'exec "$BASH" -c "$BASH_EXECUTION_STRING" "$0" "$door" "$port" again' EXIT
while :; do
  if [[ $door ]]; then wait $!; rest 0.2; serve; else rest 86400; fi
done
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user that everything in a container runs as. The shared directories must belong to it."""

    uid: int
    gid: int
    keep_id: bool = False  # rootless Podman: the same user ids inside and outside

    @property
    def owns_home(self) -> bool:
        """Whether the image's home directory belongs to this user."""
        return self.uid == GUEST_UID

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


def tag(image_id: str) -> str:
    """Return the engine's name of one of our images."""
    return f"{REPOSITORY}:{image_id}"


class Shared(NamedTuple):
    """The host directories that a container sees. None is not shared."""

    session: Path | None
    door: Path | None


def config(
    name: str,
    spec: MachineSpec,
    shared: Shared,
    installation: str,
    owner: Owner,
    cpus: int,
    confine: Path | None = None,
) -> dict[str, JSONValue]:
    """Return the body of `containers/create`.

    `cpus` is how many processors the engine has: it refuses a higher limit. `confine` is the program on the host that
    applies our filter of system calls to another one."""
    capabilities = Capabilities()
    door = _DOOR if shared.door else ""
    volumes: dict[str, JSONValue] = {capabilities.home: {}} if owner.owns_home else {}
    if shared.session is None:
        volumes[capabilities.session] = {}
    init: list[JSONValue] = ["bash", "-c", _INIT, "hiveyard-init", door, str(_DOOR_PORT)]
    return {
        "Hostname": name,
        "Image": tag(spec.image.id),
        "User": str(owner),
        "WorkingDir": "/",
        "Env": [f"{key}={value}" for key, value in environment(spec.image).items()],
        "Entrypoint": [*CONFINED, *init] if confine else init,
        "Cmd": [],
        "Volumes": volumes,
        "Labels": labels(name, spec, installation),
        "NetworkDisabled": spec.network is not Network.OPEN,
        "HostConfig": _host_config(spec, mounts(shared, capabilities, confine), owner, cpus, capabilities),
    }


def _host_config(
    spec: MachineSpec, mounts: list[JSONValue], owner: Owner, cpus: int, capabilities: Capabilities
) -> dict[str, JSONValue]:
    memory = spec.shape.memory_mib * _MIB
    tmpfs = {
        "/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={memory // _TMPFS_SHARE}",  # noqa: S108
        "/var/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={memory // _TMPFS_SHARE}",  # noqa: S108
        "/run": "rw,nosuid,nodev,mode=0755,size=16m",
    }
    if not owner.owns_home:
        tmpfs[capabilities.home] = f"rw,exec,nosuid,nodev,mode=0755,uid={owner.uid},gid={owner.gid},size={memory // 2}"
    return {
        "Mounts": mounts,
        "Tmpfs": tmpfs,
        "ReadonlyRootfs": True,
        "NetworkMode": "default" if spec.network is Network.OPEN else "none",
        "UsernsMode": "keep-id" if owner.keep_id else "",
        "IpcMode": "private",
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Privileged": False,
        "Memory": memory,
        "MemorySwap": memory,  # the same as Memory: no swap
        "NanoCpus": int(min(spec.shape.cpus, cpus) * 1_000_000_000),
        "PidsLimit": spec.shape.pids,
        "ShmSize": memory // _TMPFS_SHARE,
        "RestartPolicy": {"Name": "no"},
        "LogConfig": {"Type": "none"},
    }


def mounts(shared: Shared, capabilities: Capabilities, confine: Path | None) -> list[JSONValue]:
    found: list[JSONValue] = []
    if shared.session is not None:
        found.append({"Type": "bind", "Source": str(shared.session), "Target": capabilities.session})
    if shared.door is not None:
        found.append({"Type": "bind", "Source": str(shared.door), "Target": _DOOR, "ReadOnly": True})
    if confine is not None:
        found.append({"Type": "bind", "Source": str(confine.absolute()), "Target": CONFINE, "ReadOnly": True})
    return found


def is_confined(seen: Mapping[str, Any]) -> bool:
    """Whether a container, as the engine describes it, has the program that applies our filter of system calls.

    One that an older version of Hiveyard created does not."""
    return any(mount.get("Destination") == CONFINE for mount in seen.get("Mounts") or [])


def environment(image: Image) -> dict[str, str]:
    """Return the whole environment of a program in the machine. It holds nothing of the host's."""
    capabilities = Capabilities()
    return {
        "HOME": capabilities.home,
        "USER": capabilities.user,
        "LOGNAME": capabilities.user,
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        **image.env,
    }


def labels(name: str, spec: MachineSpec, installation: str) -> Mapping[str, str]:
    """Return the labels of a machine's container. They are the only record of the machine."""
    return {
        INSTALLATION: installation,
        MACHINE: name,
        IMAGE: spec.image.id,
        CREATED: repr(time.time()),
        PIDS: str(spec.shape.pids),
        METADATA: json.dumps(dict(spec.metadata)),
    }


def trial_labels() -> Mapping[str, str]:
    return {INSTALLATION: TRIAL, CREATED: repr(time.time())}


def is_left_over(labels: Mapping[str, str]) -> bool:
    """Whether a trial's container is so old that the daemon that created it must be gone."""
    try:
        created = float(labels.get(CREATED, "0"))
    except ValueError:
        created = 0.0
    return created < time.time() - _TRIAL_LIFETIME
