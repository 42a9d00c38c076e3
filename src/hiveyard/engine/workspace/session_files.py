"""A session's files, for each way in which a machine can have them.

    DirectoryFiles   sessions/<id>/shared/, which machines share; snapshots/<snapshot>/ has copies
    DiskFiles        sessions/<id>/disk/, which only the provider understands; it keeps the snapshots, too

Both begin as the directory `shared`, which the host fills: with a repository that is checked out, or with what came
from an archive or from an older Hiveyard. A disk is made of it before the first machine starts.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import anyio.to_thread

from hiveyard.core.errors import HiveyardError, NoSpace, OrchestrationError
from hiveyard.core.machines import MachineSpec
from hiveyard.core.ports import Provider, SessionDisks
from hiveyard.engine.resources import Resources
from hiveyard.engine.workspace import snapshot_files
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.copying import Copied, copy_tree
from hiveyard.kit.files import sync_dir
from hiveyard.kit.text import one_line
from hiveyard.kit.trees import remove_tree
from hiveyard.store.views import SessionRow

_FULL = (errno.ENOSPC, errno.EDQUOT)
_SPACE_HINT = "hv system prune; df -h; [engine] disk_reserve_mib is kept free"


class SessionFiles(Protocol):
    """The files of one session. No machine may be using them, except for `save`."""

    async def provide(self, spec: MachineSpec) -> MachineSpec:
        """Make the files ready for a machine; return its spec with them. Raises NoSpace, ProviderError."""

    async def check(self, names: Sequence[str]) -> None:
        """Raise SessionDamaged if the files are missing, or one of the directories `names` among them."""

    async def save(self, snapshot: str, former: str | None, *, reserve: int) -> Copied:
        """Save the files of a machine that is paused, beside what the provider saves. Files that did not change since
        the snapshot `former` are shared with it. Raises OSError."""

    async def drop(self, snapshot: str) -> None:
        """Remove what `save` saved; absent is a success."""

    async def derive(self, snapshot: str, child: Workspace, *, reserve: int) -> None:
        """Make the files of another session with the content of a snapshot. Raises OSError, NoSuchSnapshot, NoSpace."""

    async def stage(self, snapshot: str, *, reserve: int = 0) -> None:
        """Make files with the content of a snapshot that can replace the session's in one step. Raises as `derive`."""

    async def restore(self, snapshot: str) -> None:
        """Replace the session's files by those of a snapshot. Safe to repeat. Raises as `derive`."""

    async def unstage(self) -> None:
        """Remove the files of a rewind that was not carried out."""


def files_of(resources: Resources, session: SessionRow) -> SessionFiles:
    """Return the files of a session that was placed on a provider."""
    return session_files(resources.workspace(session.id), resources.providers[session.provider or ""])


def session_files(workspace: Workspace, provider: Provider) -> SessionFiles:
    """Return the files of a session on a provider."""
    if isinstance(provider, SessionDisks):
        return DiskFiles(workspace, provider)
    return DirectoryFiles(workspace)


class DirectoryFiles:
    """Files in a directory that machines share."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    async def provide(self, spec: MachineSpec) -> MachineSpec:
        return replace(spec, session=self._workspace.shared)

    async def check(self, names: Sequence[str]) -> None:
        await anyio.to_thread.run_sync(self._workspace.check_shared, names)

    async def save(self, snapshot: str, former: str | None, *, reserve: int) -> Copied:
        def copy() -> Copied:
            copied = snapshot_files.copy_files(self._workspace, snapshot, former, reserve)
            snapshot_files.finish(self._workspace, snapshot)
            return copied

        return await anyio.to_thread.run_sync(copy)

    async def drop(self, snapshot: str) -> None:
        await anyio.to_thread.run_sync(snapshot_files.drop, self._workspace, snapshot)

    async def derive(self, snapshot: str, child: Workspace, *, reserve: int) -> None:
        source = snapshot_files.files_of(self._workspace, snapshot)
        await anyio.to_thread.run_sync(lambda: copy_tree(source, child.shared, reserve=reserve))

    async def stage(self, snapshot: str, *, reserve: int = 0) -> None:
        await anyio.to_thread.run_sync(snapshot_files.prepare_restore, self._workspace, snapshot, reserve)

    async def restore(self, snapshot: str) -> None:
        await anyio.to_thread.run_sync(snapshot_files.restore, self._workspace, snapshot)

    async def unstage(self) -> None:
        await anyio.to_thread.run_sync(snapshot_files.clear, self._workspace)


class DiskFiles:
    """Files on a disk of the session. A snapshot that an older Hiveyard took is a copy of a directory."""

    def __init__(self, workspace: Workspace, provider: SessionDisks) -> None:
        self._workspace = workspace
        self._provider = provider
        self._old = DirectoryFiles(workspace)
        self._staged = snapshot_files.staged_disk(workspace)

    async def provide(self, spec: MachineSpec) -> MachineSpec:
        workspace = self._workspace
        if not workspace.disk.exists():
            await self._provider.make_disk(workspace.disk, workspace.shared)
        # The directory is no longer needed, also if the daemon was killed before it removed it.
        await anyio.to_thread.run_sync(lambda: remove_tree(workspace.shared, quiet=True))
        return replace(spec, disk=workspace.disk)

    async def check(self, names: Sequence[str]) -> None:
        if self._workspace.disk.exists():
            await self._provider.check_disk(self._workspace.disk)
        else:
            await self._old.check(names)

    async def save(self, snapshot: str, former: str | None, *, reserve: int) -> Copied:
        return Copied()

    async def drop(self, snapshot: str) -> None:
        await self._old.drop(snapshot)

    async def derive(self, snapshot: str, child: Workspace, *, reserve: int) -> None:
        if self._has_copy(snapshot):
            await self._old.derive(snapshot, child, reserve=reserve)
        else:
            await self._provider.derive_disk(self._name(snapshot), child.disk)

    async def stage(self, snapshot: str, *, reserve: int = 0) -> None:
        await self.unstage()
        if self._has_copy(snapshot):
            await self._old.stage(snapshot, reserve=reserve)
        else:
            await self._provider.derive_disk(self._name(snapshot), self._staged)

    async def restore(self, snapshot: str) -> None:
        if self._has_copy(snapshot):
            await self._old.restore(snapshot)
            await anyio.to_thread.run_sync(_remove, self._workspace.disk)
            return
        if not self._staged.exists():
            await self.stage(snapshot)
        await anyio.to_thread.run_sync(_replace, self._workspace.disk, self._staged)
        await anyio.to_thread.run_sync(_remove, self._workspace.shared)

    async def unstage(self) -> None:
        await self._old.unstage()

    def _name(self, snapshot: str) -> str:
        return snapshot_files.provider_name(self._workspace.root.name, snapshot)

    def _has_copy(self, snapshot: str) -> bool:
        return snapshot_files.files_of(self._workspace, snapshot).is_dir()


def _remove(path: Path) -> None:
    remove_tree(path, quiet=True)


def _replace(path: Path, by: Path) -> None:
    old = path.with_name(f"{path.name}.old")
    _remove(old)
    if path.exists():
        path.rename(old)
    by.rename(path)
    sync_dir(path.parent)
    _remove(old)


def copy_error(name: str, error: OSError) -> HiveyardError:
    """Return the error for files of session `name` that could not be copied."""
    if error.errno in _FULL:
        return NoSpace(f"no space to copy the files of {name}", hint=_SPACE_HINT)
    where = f": {one_line(error.filename)}" if isinstance(error.filename, str) else ""
    return OrchestrationError(f"the files of {name} cannot be copied: {error.strerror or error}{where}")
