"""What is asked for, checked before anything is made of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hiveyard import credentials
from hiveyard.core.credentials import CredentialProfile
from hiveyard.core.errors import BadInput, CredentialsError
from hiveyard.core.machines import HOST, Image, MachineSpec, Network, Tier, TtlAction
from hiveyard.core.ports import Forks, Pauses, Provider, Snapshots
from hiveyard.kit.mask import Mask
from hiveyard.library.errors import preparing
from hiveyard.library.snapshot import Snapshot

INFO_PATH = "~/.machine.json"
INFO_MODES = (0o640, 0o600)
_CREATED = "createdAt"
_INFO_LIMIT = 1 << 20
_FORKS = 100


def machine_spec(
    provider: Provider, source: Image | MachineSpec, snapshot: Snapshot | None, ttl: int | None, action: TtlAction
) -> MachineSpec:
    """The machine that is asked for. Raises BadInput for what this provider cannot do."""
    if snapshot is not None:
        _check_origin(provider, snapshot, source.session if isinstance(source, MachineSpec) else None)
    network = Network.OPEN if provider.capabilities.remote else Network.DOOR
    spec = MachineSpec(image=source, network=network) if isinstance(source, Image) else source
    if spec.image == HOST and provider.tier is not Tier.NAMESPACE:
        raise BadInput(
            f"HOST is this host's own programs, and machines of {provider.name} have an image",
            hint='anyio.run(Images(places().cache).ensure, "default") gives one; bubblewrap shows HOST',
        )
    if ttl is not None:
        spec = replace(spec, ttl=ttl, ttl_action=action)
    if spec.ttl is not None and spec.ttl < 1:
        raise BadInput(f"a machine lives for at least 1 second, not {spec.ttl}")
    if spec.ttl is not None and spec.ttl_action == "pause" and not isinstance(provider, Pauses):
        raise BadInput(f"the provider {provider.name} pauses no machines", hint="ttl_action='stop' or 'terminate'")
    return spec


def _check_origin(provider: Provider, snapshot: Snapshot, session: Path | None) -> None:
    """That memory and files go together: a process that goes on finds the files that it had open."""
    check_snapshot(provider)
    if provider.capabilities.remote:
        return
    if snapshot.session is None and session is None:
        raise BadInput(
            f"the snapshot {snapshot.name} of {provider.name} is memory without its session directory",
            hint="give what Orchestrator.snapshot gave, or the directory as it was then as MachineSpec.session",
        )
    if snapshot.session is not None and session is not None and _has_files(session):
        raise BadInput(
            f"the session directory {session} has files, and the snapshot {snapshot.name} brings its own",
            hint="MachineSpec.session: another directory, empty or absent, or none",
        )


def _has_files(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except OSError:  # absent, or of no use: then that is told by who fills it
        return False


def check_snapshot(provider: Provider, session: Path | None = None) -> None:
    """Raises BadInput for what this provider cannot do, and a place that is taken."""
    if not isinstance(provider, Snapshots):
        raise BadInput(f"the provider {provider.name} keeps no snapshots: it keeps no memory")
    if session is None:
        return
    if provider.capabilities.remote:
        raise BadInput(f"snapshots of {provider.name} hold the session directory", hint="leave `session` away")
    if session.exists() or session.is_symlink():
        raise BadInput(f"there is something at {session}", hint="a path where nothing is yet")


def check_fork(provider: Provider, count: int) -> None:
    """Raises BadInput for what this provider cannot do."""
    if not isinstance(provider, (Forks, Snapshots)):
        raise BadInput(
            f"machines of {provider.name} cannot be forked: it keeps no memory",
            hint="boot another one, with a copy of the session directory as MachineSpec.session",
        )
    if not 1 <= count <= _FORKS:
        raise BadInput(f"between 1 and {_FORKS} machines are forked at once, not {count}")


def check_profiles(machine: str, profiles: Sequence[CredentialProfile], real: Collection[str]) -> None:
    """Raises BadInput for profiles that cannot be installed together, NotPrepared for a secret that may not go in."""
    try:
        credentials.check(profiles, real)
        return
    except CredentialsError as error:
        failure = preparing("install_credentials", machine).failure(error, Mask(()))
    # Outside of the handler, else Python would hang the error as it was to this one.
    raise failure


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


def made_at(told: float, now: float) -> float:
    """When a machine was made, as its provider tells it; `now` where it does not, or tells what is no time."""
    try:
        datetime.fromtimestamp(told, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return now
    return told or now
