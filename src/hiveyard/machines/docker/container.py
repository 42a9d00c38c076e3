"""What a container is made of, as a pure function of what was asked for. It makes none."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from aiodocker.types import JSONValue

from hiveyard.core.machines import Capabilities, Image, MachineSpec, Network

REPOSITORY = "localhost/hiveyard"  # Podman calls all local images so, and nobody can take it for a registry's
INSTALLATION, MACHINE, IMAGE, CREATED, PIDS, METADATA = (
    f"hiveyard.{word}" for word in ("installation", "machine", "image", "created", "pids", "metadata")
)
TRIAL = "trial"
"""In the place of an installation, on containers that are run to see whether that works."""
GUEST_UID = 1000
"""The image's own user."""

_DOOR, _DOOR_PORT = "/run/hiveyard", 8377
_MIB = 1 << 20
_TRIAL_LIFE = 60  # seconds: a trial takes one
_TMPFS_SHARE = 4  # of the machine's memory, for each of /tmp and /dev/shm

# Process 1: signals from inside do not reach it, bash reaps orphans, and it holds the door's end of the machine open.
# Connections wait up to 5 minutes for a door that is away while the daemon restarts.
# Where the process table is full, socat and this bash end, each over a fork: the bash becomes a new one without a fork
# and tries until the door can be opened again. Bash catches signals while it has a trap on EXIT, so they are ignored.
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
    """Who everything in a container runs as, and so whose the shared directories have to be."""

    uid: int
    gid: int
    keep_id: bool = False  # rootless Podman: the same numbers inside as outside

    @property
    def at_home(self) -> bool:
        """Whether the image's home directory belongs to who lives in it."""
        return self.uid == GUEST_UID

    def __str__(self) -> str:
        return f"{self.uid}:{self.gid}"


def tag(image_id: str) -> str:
    """What the engine calls an image of ours."""
    return f"{REPOSITORY}:{image_id}"


class Shared(NamedTuple):
    """Where on the host the directories are that a container sees; None is not shared."""

    session: Path | None
    door: Path | None


def config(
    name: str, spec: MachineSpec, shared: Shared, installation: str, owner: Owner, cpus: int
) -> dict[str, JSONValue]:
    """The body of `containers/create`. `cpus` is how many the engine has: it refuses a limit above that."""
    capabilities = Capabilities()
    door = _DOOR if shared.door else ""
    volumes: dict[str, JSONValue] = {capabilities.home: {}} if owner.at_home else {}
    if shared.session is None:
        volumes[capabilities.session] = {}
    return {
        "Hostname": name,
        "Image": tag(spec.image.id),
        "User": str(owner),
        "WorkingDir": "/",
        "Env": [f"{key}={value}" for key, value in environment(spec.image).items()],
        "Entrypoint": ["bash", "-c", _INIT, "hiveyard-init", door, str(_DOOR_PORT)],
        "Cmd": [],
        "Volumes": volumes,
        "Labels": labels(name, spec, installation),
        "NetworkDisabled": spec.network is not Network.OPEN,
        "HostConfig": _host_config(spec, shared, owner, cpus, capabilities),
    }


def _host_config(
    spec: MachineSpec, shared: Shared, owner: Owner, cpus: int, capabilities: Capabilities
) -> dict[str, JSONValue]:
    memory = spec.shape.memory_mib * _MIB
    tmpfs = {
        "/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={memory // _TMPFS_SHARE}",  # noqa: S108
        "/var/tmp": f"rw,exec,nosuid,nodev,mode=1777,size={memory // _TMPFS_SHARE}",  # noqa: S108
        "/run": "rw,nosuid,nodev,mode=0755,size=16m",
    }
    if not owner.at_home:
        tmpfs[capabilities.home] = f"rw,exec,nosuid,nodev,mode=0755,uid={owner.uid},gid={owner.gid},size={memory // 2}"
    return {
        "Mounts": mounts(shared, capabilities),
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


def mounts(shared: Shared, capabilities: Capabilities) -> list[JSONValue]:
    found: list[JSONValue] = []
    if shared.session is not None:
        found.append({"Type": "bind", "Source": str(shared.session), "Target": capabilities.session})
    if shared.door is not None:
        found.append({"Type": "bind", "Source": str(shared.door), "Target": _DOOR, "ReadOnly": True})
    return found


def environment(image: Image) -> dict[str, str]:
    """All that a program in the machine finds in its environment: nothing of the host's."""
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
    """All that is kept of a machine is on its container."""
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


def is_left(labels: Mapping[str, str]) -> bool:
    """Whether a trial's container was made so long ago that nobody is left to remove it."""
    try:
        created = float(labels.get(CREATED, "0"))
    except ValueError:
        created = 0.0
    return created < time.time() - _TRIAL_LIFE
