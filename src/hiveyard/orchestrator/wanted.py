"""What is asked for, checked before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from hiveyard.core.errors import BadInput
from hiveyard.core.machines import Image, MachineSpec, Network, TtlAction
from hiveyard.core.ports import Forks, Pauses, Provider, Snapshots

INFO_PATH = "~/.machine.json"
INFO_MODES = (0o640, 0o600)
_CREATED = "createdAt"
_INFO_LIMIT = 1 << 20
_FORKS = 100


def machine_spec(
    provider: Provider, source: Image | MachineSpec, snapshot: str | None, ttl: int | None, action: TtlAction
) -> MachineSpec:
    """The machine that is asked for. Raises BadInput for what this provider cannot do."""
    if snapshot is not None and not isinstance(provider, Snapshots):
        raise BadInput(f"the provider {provider.name} keeps no snapshots to boot from")
    network = Network.OPEN if provider.capabilities.remote else Network.DOOR
    spec = MachineSpec(image=source, network=network) if isinstance(source, Image) else source
    if ttl is not None:
        spec = replace(spec, ttl=ttl, ttl_action=action)
    if spec.ttl is not None and spec.ttl < 1:
        raise BadInput(f"a machine lives for at least 1 second, not {spec.ttl}")
    if spec.ttl is not None and spec.ttl_action == "pause" and not isinstance(provider, Pauses):
        raise BadInput(f"the provider {provider.name} pauses no machines", hint="ttl_action='stop' or 'terminate'")
    return spec


def check_fork(provider: Provider, count: int) -> None:
    """Raises BadInput for what this provider cannot do."""
    if not isinstance(provider, (Forks, Snapshots)):
        raise BadInput(
            f"machines of {provider.name} cannot be forked: it keeps no memory",
            hint="boot another one, with a copy of the session directory as MachineSpec.session",
        )
    if not 1 <= count <= _FORKS:
        raise BadInput(f"between 1 and {_FORKS} machines are forked at once, not {count}")


def check_info(info: Mapping[str, object], mode: int) -> None:
    """Raises BadInput for what cannot be the content or the mode of `.machine.json`."""
    if mode not in INFO_MODES:
        raise BadInput(f"{INFO_PATH} has mode 0640 or 0600, not {mode:04o}")
    if _CREATED in info:
        raise BadInput(f"machine_info has a {_CREATED!r} of its own: that is the machine's")
    try:
        size = len(info_file(info, 0.0))
    except (TypeError, ValueError) as error:
        raise BadInput(f"machine_info cannot be JSON: {error}") from error
    if size > _INFO_LIMIT:
        raise BadInput(f"machine_info is larger than {_INFO_LIMIT} bytes")


def info_file(info: Mapping[str, object], created_at: float) -> bytes:
    """The content of `.machine.json`: what is told about the machine, and when it was made."""
    created = datetime.fromtimestamp(created_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({**info, _CREATED: created}, indent=2, allow_nan=False).encode() + b"\n"
