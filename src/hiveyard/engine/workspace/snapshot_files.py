"""Store the files of snapshots on disk, restore them, and remove half-made ones.

    snapshots/<id>/shared/     a copy of the session's files; it does not change any more
    snapshots/<id>/marks       data to find the files that change until the next snapshot
    snapshots/.half-<id>/      a snapshot that is being made
    shared.rewound/            files that are about to replace shared/

All functions block: call them in a thread. A guest wrote the files, so no symlink in them is followed.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.copying import Copied, Former, Mark, copy_tree
from hiveyard.kit.files import sync_dir, write_atomic
from hiveyard.kit.trees import remove_tree
from hiveyard.store.lineage import Point

_HALF = ".half-"


def provider_name(session: str, snapshot: str) -> str:
    """Return the provider's name of a live snapshot of a session."""
    return f"hv-{session}-{snapshot}"


def files_of(workspace: Workspace, snapshot: str) -> Path:
    return workspace.snapshots / snapshot / "shared"


def copy_files(workspace: Workspace, snapshot: str, former: str | None, reserve: int) -> Copied:
    """Copy the session's files into a half-made snapshot; files that did not change since `former` are shared with it.
    `reserve` bytes of the disk stay free, because with less all sessions on that disk would be stopped."""
    half = workspace.snapshots / f"{_HALF}{snapshot}"
    half.mkdir(parents=True, mode=0o700)
    copied = copy_tree(workspace.shared, half / "shared", _former(workspace, former), reserve=reserve)
    write_atomic(half / "marks", msgspec.msgpack.encode(copied.marks), mode=0o600, durable=False)
    return copied


def finish(workspace: Workspace, snapshot: str) -> None:
    """Rename a half-made snapshot to its final name."""
    (workspace.snapshots / f"{_HALF}{snapshot}").rename(workspace.snapshots / snapshot)
    sync_dir(workspace.snapshots)


def drop(workspace: Workspace, snapshot: str) -> None:
    """Remove a snapshot's files, finished or not; absent is a success."""
    for name in (snapshot, f"{_HALF}{snapshot}"):
        remove_tree(workspace.snapshots / name, quiet=True)


def remains(workspace: Workspace, known: set[str]) -> list[Path]:
    """Return the entries of the snapshot directory that are not known snapshots."""
    if not workspace.snapshots.is_dir():
        return []
    return [path for path in workspace.snapshots.iterdir() if path.name not in known]


# --- restoring -------------------------------------------------------------------------------------------------------


def prepare_restore(workspace: Workspace, snapshot: str, reserve: int = 0) -> None:
    """Make a copy of a snapshot's files that can replace the session's in one step; `reserve` is as above."""
    half, ready = _ready(workspace)
    clear(workspace)
    copy_tree(files_of(workspace, snapshot), half, reserve=reserve)
    half.rename(ready)


def restore(workspace: Workspace, snapshot: str) -> None:
    """Restore the session's files from a snapshot. No machine may be using them. Safe to repeat."""
    _, ready = _ready(workspace)
    if not ready.exists():
        prepare_restore(workspace, snapshot)
    old = workspace.root / "shared.old"
    remove_tree(old, quiet=True)
    if workspace.shared.exists():
        workspace.shared.rename(old)
    ready.rename(workspace.shared)
    sync_dir(workspace.root)
    remove_tree(old, quiet=True)


def is_ready(workspace: Workspace) -> bool:
    """Return whether there are files that are about to replace the session's."""
    return _ready(workspace)[1].exists() or staged_disk(workspace).exists()


def staged_disk(workspace: Workspace) -> Path:
    """Return the path of a disk that is about to replace the session's."""
    return workspace.root / "disk.rewound"


def clear(workspace: Workspace) -> None:
    """Remove the files of a rewind that was not carried out."""
    for path in (*_ready(workspace), staged_disk(workspace)):
        remove_tree(path, quiet=True)


def _ready(workspace: Workspace) -> tuple[Path, Path]:
    return workspace.root / "shared.half", workspace.root / "shared.rewound"


def _former(workspace: Workspace, snapshot: str | None) -> Former | None:
    if snapshot is None:
        return None
    try:
        data = (workspace.snapshots / snapshot / "marks").read_bytes()
        return Former(files_of(workspace, snapshot), _marks(data))
    except (OSError, msgspec.MsgspecError):
        return None  # then no file is shared


def _marks(data: bytes) -> dict[bytes, Mark]:
    """Decode `marks`; an earlier Hiveyard stored paths as text."""
    try:
        return msgspec.msgpack.decode(data, type=dict[bytes, Mark])
    except msgspec.ValidationError:
        return {path.encode(): mark for path, mark in msgspec.msgpack.decode(data, type=dict[str, Mark]).items()}


def snapshot_to_boot(session: str, point: Point) -> str | None:
    """Return the provider's name of a live snapshot; None for a snapshot of files only."""
    return provider_name(session, point.row.id) if point.row.live else None
