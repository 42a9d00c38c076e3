"""Snapshots on disk: where they lie, how the session's files get there and back, and what half-made ones leave.

    snapshots/<id>/shared/     the session's files as they stood; nobody writes there any more
    snapshots/<id>/marks       what tells which of them change until the next one
    snapshots/.half-<id>/      one that is being made
    shared.rewound/            files that are about to take the place of shared/

All of it is blocking: call it in a thread. What it meets was written by a guest: no link in it is followed.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from hiveyard.engine.workspace.directory import GUEST_ROOT, Workspace
from hiveyard.kit.copying import Copied, Former, Mark, copy_content, copy_tree
from hiveyard.kit.files import open_beneath, sync_dir, write_atomic
from hiveyard.kit.trees import remove_tree
from hiveyard.store.lineage import Point

_HALF = ".half-"
_LONGEST = 64 << 20
"""Bytes of the longest line that a feed may end in."""


def provider_name(session: str, snapshot: str) -> str:
    """What a provider calls a live snapshot of a session."""
    return f"hv-{session}-{snapshot}"


def files_of(workspace: Workspace, snapshot: str) -> Path:
    return workspace.snapshots / snapshot / "shared"


def copy_files(workspace: Workspace, snapshot: str, former: str | None, reserve: int) -> Copied:
    """Copy the session's files into a half-made snapshot; what did not change since `former` is shared with it.
    `reserve` bytes of the disk stay free: with less, all sessions that write there would be stopped."""
    half = workspace.snapshots / f"{_HALF}{snapshot}"
    half.mkdir(parents=True, mode=0o700)
    copied = copy_tree(workspace.shared, half / "shared", _former(workspace, former), reserve=reserve)
    write_atomic(half / "marks", msgspec.msgpack.encode(copied.marks), mode=0o600, durable=False)
    return copied


def finish(workspace: Workspace, snapshot: str) -> None:
    """Give a half-made snapshot its name."""
    (workspace.snapshots / f"{_HALF}{snapshot}").rename(workspace.snapshots / snapshot)
    sync_dir(workspace.snapshots)


def cut_feed(workspace: Workspace, snapshot: str, feed: str) -> int:
    """Cut the feed in a half-made snapshot after its last whole line, so that a new program can go on in it; returns
    its length. `feed` is the guest's path. A feed that is not there, or no file, or ends in a line longer than any of
    an agent, is empty: a guest can make it of any length."""
    relative = str(Path(feed).relative_to(GUEST_ROOT))
    root = workspace.snapshots / f"{_HALF}{snapshot}" / "shared"
    try:
        fd = open_beneath(root, relative)
    except OSError:
        return 0
    try:
        size = whole = os.fstat(fd).st_size
        while whole > 0:
            if size - whole > _LONGEST:
                whole = 0
                break
            start = max(0, whole - (1 << 20))
            end = os.pread(fd, whole - start, start).rfind(b"\n")
            whole = start + end + 1 if end >= 0 else start
            if end >= 0:
                break
        if whole < size:
            _own_copy(root / relative, fd, whole)
        return whole
    finally:
        os.close(fd)


def _own_copy(path: Path, fd: int, size: int) -> None:
    """Replace a file by its first bytes: it may be shared with another snapshot."""
    fresh = path.with_name(f"{path.name[:100]}.cut")
    with fresh.open("xb") as file:
        if size:
            copy_content(fd, file.fileno())
        os.ftruncate(file.fileno(), size)
        status = os.fstat(fd)
        os.fchown(file.fileno(), status.st_uid, status.st_gid)
        os.fchmod(file.fileno(), 0o644)
    fresh.replace(path)


def drop(workspace: Workspace, snapshot: str) -> None:
    """Remove a snapshot's files, finished or not; absent is a success."""
    for name in (snapshot, f"{_HALF}{snapshot}"):
        remove_tree(workspace.snapshots / name, quiet=True)


def remains(workspace: Workspace, known: set[str]) -> list[Path]:
    """What lies among the snapshots and is none that is known."""
    if not workspace.snapshots.is_dir():
        return []
    return [path for path in workspace.snapshots.iterdir() if path.name not in known]


# --- back ------------------------------------------------------------------------------------------------------------


def lay_ready(workspace: Workspace, snapshot: str, reserve: int = 0) -> None:
    """Make a copy of a snapshot's files that can take the place of the session's in one step; `reserve` as above."""
    half, ready = _ready(workspace)
    clear(workspace)
    copy_tree(files_of(workspace, snapshot), half, reserve=reserve)
    half.rename(ready)


def put_back(workspace: Workspace, snapshot: str) -> None:
    """Have the session's files as they were at a snapshot. No machine may use them. Safe to repeat."""
    _, ready = _ready(workspace)
    if not ready.exists():
        lay_ready(workspace, snapshot)
    old = workspace.root / "shared.old"
    remove_tree(old, quiet=True)
    if workspace.shared.exists():
        workspace.shared.rename(old)
    ready.rename(workspace.shared)
    sync_dir(workspace.root)
    remove_tree(old, quiet=True)


def is_ready(workspace: Workspace) -> bool:
    """Whether files lie there that are about to take the place of the session's."""
    return _ready(workspace)[1].exists()


def clear(workspace: Workspace) -> None:
    """Remove what a rewind that did not come about left."""
    for path in _ready(workspace):
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
        return None  # then nothing is shared


def _marks(data: bytes) -> dict[bytes, Mark]:
    """What `marks` holds; that of an earlier Hiveyard has paths as text."""
    try:
        return msgspec.msgpack.decode(data, type=dict[bytes, Mark])
    except msgspec.ValidationError:
        return {path.encode(): mark for path, mark in msgspec.msgpack.decode(data, type=dict[str, Mark]).items()}


def snapshot_to_boot(session: str, point: Point) -> str | None:
    """The provider's name of a live snapshot; None for one of files alone."""
    return provider_name(session, point.row.id) if point.row.live else None
