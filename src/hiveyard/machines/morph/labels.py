"""Define the labels by which a restarted daemon finds its instances and snapshots of Morph Cloud.

The service keeps metadata as texts; all of ours begin with `hiveyard-`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from hiveyard.core.machines import Capabilities, MachineSpec, Shape
from hiveyard.machines.morph.wire import Instance

INSTALLATION: Final = "hiveyard-installation"
MACHINE: Final = "hiveyard-machine"
IMAGE: Final = "hiveyard-image"
METADATA: Final = "hiveyard-metadata"
ATTEMPT: Final = "hiveyard-attempt"  # which call of ours made it: a call whose answer was lost finds its instance
READY: Final = "hiveyard-ready"  # it was brought to its end: what has not got it is half-made
PAUSED: Final = "hiveyard-paused"  # what it means when it is paused: "stopped", or "frozen"
LIFETIME: Final = "hiveyard-lifetime"  # what a pause means that comes when its time is over: "stopped", or "frozen"
PREPARED: Final = "hiveyard-prepared"  # on what `prepare` makes: the image, the shape and another home
SNAPSHOT: Final = "hiveyard-snapshot"

STOPPED: Final = "stopped"
FROZEN: Final = "frozen"


def of_machine(installation: str, name: str, spec: MachineSpec) -> dict[str, str]:
    """Return the labels of a new instance for the machine `name`."""
    return {
        INSTALLATION: installation,
        MACHINE: name,
        IMAGE: spec.image.id,
        METADATA: json.dumps(dict(spec.metadata)),
        **_lifetime(spec),
    }


def of_child(parent: Instance, name: str, spec: MachineSpec) -> dict[str, str]:
    """Return the labels of an instance that continues from `parent` as the machine `name`, with its own lifetime."""
    kept = {key: value for key, value in parent.metadata.items() if key not in (READY, ATTEMPT)}
    return {**kept, MACHINE: name, **_lifetime(spec)}


def _lifetime(spec: MachineSpec) -> dict[str, str]:
    """Return the labels for the action at the end of its lifetime, when no program of ours may be running."""
    return dict.fromkeys((PAUSED, LIFETIME), STOPPED if spec.ttl_action == "stop" else FROZEN)


def of_prepared(image_id: str, shape: Shape, home: str) -> str:
    own = "" if home == Capabilities().home else home
    return f"{image_id}/{shape.whole_cpus}/{shape.memory_mib}/{shape.disk_gib}{own}"


def stopped(instance: Instance) -> bool:
    """Return whether a paused instance counts as stopped."""
    return instance.metadata.get(PAUSED) == STOPPED


def lifetime(instance: Instance) -> str:
    """Return the meaning of a pause at the end of its lifetime. Older instances have only the current meaning."""
    return instance.metadata.get(LIFETIME) or instance.metadata.get(PAUSED, FROZEN)


def metadata(instance: Instance) -> Mapping[str, str]:
    """Return the metadata that the machine was created with. Malformed labels, which others may write, are ignored."""
    try:
        found = json.loads(instance.metadata.get(METADATA, "{}"))
    except ValueError:
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
