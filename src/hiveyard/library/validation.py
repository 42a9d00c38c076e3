"""Validate requests before anything is created."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from hiveyard import credentials
from hiveyard.core.credentials import CredentialProfile
from hiveyard.core.errors import BadInput, CredentialsError
from hiveyard.core.machines import HOST, Image, MachineSpec, Network, Tier, TtlAction, WorkspaceKind
from hiveyard.core.ports import Forks, Pauses, Provider, Snapshots
from hiveyard.kit.mask import Mask
from hiveyard.library.errors import preparing
from hiveyard.library.snapshot import Snapshot

INFO_PATH = "~/.machine.json"
INFO_MODES = (0o640, 0o600)
_CREATED = "createdAt"
_INFO_LIMIT = 1 << 20
_MAX_FORKS = 100


def machine_spec(
    provider: Provider, source: Image | MachineSpec, snapshot: Snapshot | None, ttl: int | None, action: TtlAction
) -> MachineSpec:
    """Return the spec of the requested machine. Raises BadInput for a request that the provider does not support."""
    if snapshot is not None:
        _check_origin(provider, snapshot, source.session if isinstance(source, MachineSpec) else None)
    network = Network.DOOR if provider.capabilities.closes_network else Network.OPEN
    spec = MachineSpec(image=source, network=network) if isinstance(source, Image) else source
    if spec.image == HOST and provider.tier is not Tier.NAMESPACE:
        raise BadInput(
            f"HOST means this host's own programs, but machines of {provider.name} need an image",
            hint='anyio.run(Images(default_paths().cache).ensure, "default") returns one; bubblewrap supports HOST',
        )
    if ttl is not None:
        spec = replace(spec, ttl=ttl, ttl_action=action)
    if spec.ttl is not None and spec.ttl < 1:
        raise BadInput(f"the time to live must be at least 1 second, not {spec.ttl}")
    if spec.ttl is not None and spec.ttl_action == "pause" and not isinstance(provider, Pauses):
        raise BadInput(f"the provider {provider.name} cannot pause machines", hint="ttl_action='stop' or 'terminate'")
    return spec


def _check_origin(provider: Provider, snapshot: Snapshot, session: Path | None) -> None:
    """Check that memory and files belong together: a process that continues must find its open files."""
    check_snapshot(provider)
    if provider.capabilities.workspace is not WorkspaceKind.DIRECTORY:
        return
    if snapshot.session is None and session is None:
        raise BadInput(
            f"the snapshot {snapshot.name} of {provider.name} has no session directory",
            hint="pass the result of Orchestrator.snapshot, or a copy of the directory as MachineSpec.session",
        )
    if snapshot.session is not None and session is not None and _has_files(session):
        raise BadInput(
            f"the session directory {session} has files, but the snapshot {snapshot.name} has its own",
            hint="set MachineSpec.session to an empty or absent directory, or to None",
        )


def _has_files(directory: Path) -> bool:
    try:
        return any(directory.iterdir())
    except OSError:  # absent or unusable: filling it reports the error
        return False


def check_snapshot(provider: Provider, session: Path | None = None) -> None:
    """Raise BadInput if the provider has no snapshots, or `session` exists."""
    if not isinstance(provider, Snapshots):
        raise BadInput(f"the provider {provider.name} has no snapshots: it cannot save memory")
    if session is None:
        return
    if provider.capabilities.workspace is not WorkspaceKind.DIRECTORY:
        raise BadInput(f"snapshots of {provider.name} contain the session's files", hint="omit `session`")
    if session.exists() or session.is_symlink():
        raise BadInput(f"{session} already exists", hint="use a path that does not exist")


def check_fork(provider: Provider, count: int) -> None:
    """Raise BadInput if the provider cannot fork machines, or for an invalid count."""
    if not isinstance(provider, (Forks, Snapshots)):
        raise BadInput(
            f"machines of {provider.name} cannot be forked: it cannot save memory",
            hint="boot another machine, with a copy of the session directory as MachineSpec.session",
        )
    if not 1 <= count <= _MAX_FORKS:
        raise BadInput(f"one call forks 1 to {_MAX_FORKS} machines, not {count}")


def check_profiles(machine: str, profiles: Sequence[CredentialProfile], real: Collection[str]) -> None:
    """Raise BadInput for profiles that cannot be installed together, NotPrepared for a secret that is not allowed."""
    try:
        credentials.check(profiles, real)
        return
    except CredentialsError as error:
        failure = preparing("install_credentials", machine).failure(error, Mask(()))
    # Outside of the handler, otherwise Python would attach the original error as the context.
    raise failure


def check_info(info: Mapping[str, object], mode: int) -> None:
    """Raise BadInput for an invalid content or mode of `.machine.json`."""
    if mode not in INFO_MODES:
        raise BadInput(f"the mode of {INFO_PATH} must be 0640 or 0600, not {mode:04o}")
    if _CREATED in info:
        raise BadInput(f"machine_info cannot contain {_CREATED!r}: Hiveyard sets it")
    try:
        size = len(info_file(info, 0.0))
    except (TypeError, ValueError) as error:
        raise BadInput(f"machine_info cannot be encoded as JSON: {error}") from error
    if size > _INFO_LIMIT:
        raise BadInput(f"machine_info is larger than {_INFO_LIMIT} bytes")


def info_file(info: Mapping[str, object], created_at: float) -> bytes:
    """Return the content of `.machine.json`: the given information and the time of creation."""
    created = datetime.fromtimestamp(created_at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({**info, _CREATED: created}, indent=2, allow_nan=False).encode() + b"\n"


def creation_time(timestamp: float, now: float) -> float:
    """Return a machine's time of creation from its provider, or `now` if that is missing or invalid."""
    try:
        datetime.fromtimestamp(timestamp, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return now
    return timestamp or now
