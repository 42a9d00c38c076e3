"""Export a stopped session into one file, without any key. The format is in manifest.py."""

from __future__ import annotations

import errno
import gzip
import io
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import anyio.to_thread
import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, NoSpace, OrchestrationError, SessionNotRunning
from hiveyard.core.states import Phase
from hiveyard.engine.archive import manifest as layout
from hiveyard.engine.archive.manifest import Manifest
from hiveyard.engine.archive.sparse import sparse, written
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.snapshots.fork import write_heard
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.engine.workspace.integrity import check_integrity
from hiveyard.kit.copying import DEEPEST
from hiveyard.kit.permissions import entered, opened
from hiveyard.kit.text import one_line
from hiveyard.repository.git import config, git_output
from hiveyard.repository.pushing import object_format
from hiveyard.repository.submodules import bare_copy, submodules
from hiveyard.repository.taking import identity
from hiveyard.store import journal, lineage
from hiveyard.store.views import SessionRow

_TYPES = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFREG: tarfile.REGTYPE}
_LEVEL = 1  # of gzip: what is large in a session is packed already


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an export. `left_out` counts sockets, pipes and devices."""

    path: str
    size: int
    left_out: int


class Exports:
    """Writes sessions into files."""

    def __init__(self, resources: Resources, sessions: Sessions) -> None:
        self._r = resources
        self._sessions = sessions

    async def export(self, id: str, path: Path) -> Exported:
        """Write the session to `path`, which must not exist; it is there whole or not at all.

        Raises SessionNotRunning for one that is not stopped, SessionDamaged, BadInput, NoSpace."""
        async with self._sessions.alone(id):
            return await self._export(id, path)

    async def _export(self, id: str, path: Path) -> Exported:
        session = await self._sessions.row(id)
        if session.phase is not Phase.STOPPED:
            raise SessionNotRunning(f"{session.slug} is {session.phase}", hint=f"hv stop {session.slug}")
        if not path.is_absolute() or path.exists() or not path.parent.is_dir():
            raise BadInput(f"{path} cannot be written: it is there already, or its directory is not")
        workspace = self._r.workspace(id)
        await check_integrity(self._r, session)
        try:
            # Beside the sessions: what a killed daemon leaves there is swept by the next.
            with tempfile.TemporaryDirectory(dir=self._r.sessions, prefix=".export-") as scratch:
                await self._gather(session, workspace, Path(scratch))
                left_out = await anyio.to_thread.run_sync(_write, workspace, Path(scratch), path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"no space to export {session.slug} to {path}", hint=f"df -h {path.parent}") from error
            raise OrchestrationError(f"{session.slug} cannot be exported: {error}") from error
        return Exported(path=str(path), size=path.stat().st_size, left_out=left_out)

    async def _gather(self, session: SessionRow, workspace: Workspace, into: Path) -> None:
        """Write the parts of the archive that are not files of the session yet."""
        await git_output("bundle", "create", "--quiet", str(into / layout.BUNDLE), "--all", at=workspace.origin)
        inner = submodules(workspace.origin)
        (into / layout.SUBMODULES).mkdir()
        for one in inner:
            copy, file = bare_copy(workspace.origin, one), into / layout.SUBMODULES / f"{one.copy}.bundle"
            await git_output("bundle", "create", "--quiet", str(file), "--all", at=copy)
            if (copy / "shallow").exists():
                shutil.copyfile(copy / "shallow", file.with_suffix(".shallow"))
        about = {
            "base_ref": await config(workspace.origin, "hiveyard.baseref"),
            "identity": await identity(workspace.origin),
            "object_format": await object_format(workspace.origin),
            "submodules": inner,
        }

        def write(conn: Connection) -> None:
            write_heard(conn, workspace, session.id, into / layout.HEARD)
            _write_events(conn, session.id, into / layout.EVENTS)
            manifest = Manifest(
                id=session.id,
                name=session.slug,
                agent=session.agent,
                provider=session.provider or "",
                base=session.base or "",
                branch=session.branch or "",
                conversation=lineage.conversation(conn, session.id) or "",
                feed_offset=session.feed_offset,
                exported_at=self._r.clock.now(),
                **about,  # type: ignore[arg-type]
            )
            (into / layout.MANIFEST).write_bytes(msgspec.json.encode(manifest))

        await self._r.event_log.read(write)


def _write_events(conn: Connection, session: str, file: Path) -> None:
    after = 0
    with file.open("wb") as out:
        while page := journal.lines(conn, session, after=after):
            out.writelines(line for _, line in page)
            after = page[-1][0]


def _write(workspace: Workspace, gathered: Path, path: Path) -> int:
    """Write the archive; returns how many sockets, pipes and devices it does without."""
    with (
        _whole(path) as file,
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        writing = _Writing(tar)
        writing.entry(layout.TOP, stat.S_IFDIR | 0o700)
        # The manifest first: who reads it knows at once what comes.
        for name in (layout.MANIFEST, layout.EVENTS, layout.HEARD, layout.BUNDLE, layout.SUBMODULES):
            writing.tree(gathered, name)
        shallow = workspace.origin / "shallow"
        if shallow.exists():
            writing.file(f"{layout.TOP}/shallow", shallow)
        for name in ("prompts", "result", "tape.jsonl", "shared"):
            if (workspace.root / name).exists():
                writing.tree(workspace.root, name)
        return writing.left_out


@contextmanager
def _whole(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that gets its name when it is complete; nobody else may read it. Killed on the way it leaves nothing,
    where the file system knows files without a name."""
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd, name = _unnamed(path)
        with os.fdopen(fd, "wb") as file:
            try:
                yield file
                file.flush()
                os.fsync(fd)
                os.link(name or f"/proc/self/fd/{fd}", path, src_dir_fd=parent)
            finally:
                if name is not None:
                    Path(name).unlink(missing_ok=True)
    finally:
        os.close(parent)


def _unnamed(path: Path) -> tuple[int, str | None]:
    """A new file beside `path`, and the name that it has all the same."""
    with suppress(OSError):
        return os.open(path.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600), None
    return tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)


class _Writing:
    """Puts trees into an archive, following no link."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.left_out = 0

    def tree(self, root: Path, name: str) -> None:
        at = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._add(at, name, f"{layout.TOP}/{name}", 0)
        finally:
            os.close(at)

    def file(self, name: str, path: Path) -> None:
        with path.open("rb") as source:
            self._regular(source.fileno(), name)

    def entry(self, name: str, mode: int, *, size: int = 0, at: float = 0.0, to: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.mode, info.size, info.mtime, info.linkname = stat.S_IMODE(mode) & 0o777, size, at, to
        info.type = (
            tarfile.DIRTYPE if stat.S_ISDIR(mode) else tarfile.SYMTYPE if stat.S_ISLNK(mode) else tarfile.REGTYPE
        )
        if not stat.S_ISREG(mode):
            self._tar.addfile(info)
        return info

    def _add(self, at: int, name: str, shown: str, depth: int) -> None:
        if depth > DEEPEST:
            raise OSError(errno.ENAMETOOLONG, f"directories are more than {DEEPEST} deep", shown[:200])
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            self.entry(shown, status.st_mode, at=status.st_mtime, to=os.readlink(name, dir_fd=at))
        elif stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
            fd = opened(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, at)
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    self.entry(shown, status.st_mode, at=status.st_mtime)
                    self._below(fd, shown, depth)
                else:
                    self._regular(fd, shown)
            finally:
                os.close(fd)
        else:
            self.left_out += 1

    def _below(self, at: int, shown: str, depth: int) -> None:
        with entered(at), os.scandir(at) as entries:
            for name in sorted(entry.name for entry in entries):
                self._add(at, name, f"{shown}/{name}", depth + 1)

    def _regular(self, fd: int, shown: str) -> None:
        status = os.fstat(fd)
        info = self.entry(shown, status.st_mode, size=status.st_size, at=status.st_mtime)
        with open(fd, "rb", closefd=False) as source:
            content: IO[bytes] = source
            taken = status.st_blocks * 512
            if taken < status.st_size and (extents := written(fd, status.st_size)) is not None:
                content = sparse(info, source, extents)
            elif 2 * taken < status.st_size:
                # All its holes would be written, which may take days and the whole disk.
                where = one_line(shown.partition("/")[2])
                raise BadInput(f"{where} has {taken} bytes scattered over {status.st_size}: no archive holds that")
            self._tar.addfile(info, content)
