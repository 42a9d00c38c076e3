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
from hiveyard.engine.archive.sparse import data_extents, make_sparse
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.reading import reading_machine
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.snapshots.fork import write_agent_output
from hiveyard.engine.workspace.directory import GUEST_ROOT, Workspace
from hiveyard.engine.workspace.integrity import check_integrity
from hiveyard.kit.copying import DEEPEST
from hiveyard.kit.permissions import entered, opened
from hiveyard.kit.text import one_line
from hiveyard.machines.shared.bring_out import bring_out
from hiveyard.repository.checkout import object_format
from hiveyard.repository.git import config, git_output
from hiveyard.repository.submodules import bare_copy, submodules
from hiveyard.repository.taking import identity
from hiveyard.store import journal, lineage
from hiveyard.store.views import SessionRow

_TYPES = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFREG: tarfile.REGTYPE}
_LEVEL = 1  # of gzip: the large parts of a session are compressed already


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an export. `left_out` counts sockets, pipes and devices."""

    path: str
    size: int
    left_out: int


class Exports:
    """The service that exports sessions into files."""

    def __init__(self, resources: Resources, sessions: Sessions) -> None:
        self._r = resources
        self._sessions = sessions

    async def export(self, id: str, path: Path) -> Exported:
        """Write the session to `path`, which must not exist; the file is complete or does not exist.

        Raises SessionNotRunning for a session that is not stopped, SessionDamaged, BadInput, NoSpace."""
        async with self._sessions.lock(id):
            return await self._export(id, path)

    async def _export(self, id: str, path: Path) -> Exported:
        session = await self._sessions.row(id)
        if session.phase is not Phase.STOPPED:
            raise SessionNotRunning(f"{session.slug} is {session.phase}", hint=f"hv stop {session.slug}")
        if not path.is_absolute() or path.exists() or not path.parent.is_dir():
            raise BadInput(f"{path} cannot be written: the file exists already, or its directory does not exist")
        workspace = self._r.workspace(id)
        await check_integrity(self._r, session)
        try:
            # Beside the sessions: if the daemon is killed, the next one removes it.
            with tempfile.TemporaryDirectory(dir=self._r.sessions, prefix=".export-") as scratch:
                await self._write_parts(session, workspace, Path(scratch))
                left_out = 0
                if workspace.disk.exists():
                    async with reading_machine(session, self._r) as guest:
                        reserve = self._r.settings.reserve
                        brought = await bring_out(guest, GUEST_ROOT, Path(scratch, "shared"), reserve=reserve)
                    left_out = brought.left_out
                left_out += await anyio.to_thread.run_sync(_write, workspace, Path(scratch), path)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(f"no space to export {session.slug} to {path}", hint=f"df -h {path.parent}") from error
            raise OrchestrationError(f"{session.slug} cannot be exported: {error}") from error
        return Exported(path=str(path), size=path.stat().st_size, left_out=left_out)

    async def _write_parts(self, session: SessionRow, workspace: Workspace, into: Path) -> None:
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
            write_agent_output(conn, workspace, session.id, into / layout.HEARD)
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


def _write(workspace: Workspace, parts: Path, path: Path) -> int:
    """Write the archive; return how many sockets, pipes and devices were left out."""
    with (
        _atomic_file(path) as file,
        gzip.GzipFile(fileobj=file, mode="wb", compresslevel=_LEVEL, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        writing = _TreeWriter(tar)
        writing.entry(layout.TOP, stat.S_IFDIR | 0o700)
        # The manifest comes first, so that a reader knows what follows.
        for name in (layout.MANIFEST, layout.EVENTS, layout.HEARD, layout.BUNDLE, layout.SUBMODULES):
            writing.tree(parts, name)
        shallow = workspace.origin / "shallow"
        if shallow.exists():
            writing.file(f"{layout.TOP}/shallow", shallow)
        for name in ("prompts", "result", "tape.jsonl", "shared"):
            for root in (workspace.root, parts):
                if (root / name).exists():
                    writing.tree(root, name)
        return writing.left_out


@contextmanager
def _atomic_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Yield a new file that gets its name when the block succeeds; only the owner may read it. If the process is killed
    before that, nothing is left, provided the file system supports unnamed files."""
    parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd, name = _open_unnamed(path)
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


def _open_unnamed(path: Path) -> tuple[int, str | None]:
    """Create an unnamed file beside `path`. Return it with None, or with its name if it had to get one."""
    with suppress(OSError):
        return os.open(path.parent, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600), None
    return tempfile.mkstemp(prefix=f".{path.name[:64]}.", dir=path.parent)


class _TreeWriter:
    """A writer of directory trees into an archive; it follows no links."""

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
            if taken < status.st_size and (extents := data_extents(fd, status.st_size)) is not None:
                content = make_sparse(info, source, extents)
            elif 2 * taken < status.st_size:
                # All its holes would be written, which could take days and fill the disk.
                where = one_line(shown.partition("/")[2])
                raise BadInput(
                    f"{where} is too sparse for an archive: {taken} bytes are scattered over {status.st_size}"
                )
            self._tar.addfile(info, content)
