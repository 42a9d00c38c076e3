"""Import a session that was exported elsewhere.

The archive's author may be hostile. The archive is unpacked into one directory without following links, git checks each
object before it is used, the journal is replayed event by event through the state tables, and the request is reduced to
what a stranger may ask for.
"""

from __future__ import annotations

import errno
import gzip
import math
import os
import re
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import (
    BadArchive,
    BadInput,
    HiveyardError,
    IllegalMove,
    NoSuchImage,
    NotFound,
    RepositoryError,
)
from hiveyard.core.events import (
    AnyBody,
    MachineEvent,
    ModelCalled,
    PortEvent,
    SessionChanged,
    SessionCreated,
    SessionForked,
    SessionImported,
    SessionPaused,
    SessionPlaced,
    SessionUnpaused,
    SnapshotEvent,
    TaskEvent,
)
from hiveyard.core.machines import HOST
from hiveyard.core.parsing import parsed
from hiveyard.core.states import Phase
from hiveyard.core.tools import ToolServer
from hiveyard.engine.archive import manifest as layout
from hiveyard.engine.archive.manifest import Manifest, read_manifest
from hiveyard.engine.placement.provider_choice import Choice, choose
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.request import SpawnRequest, check_name, session_request, spawn_from_json
from hiveyard.engine.sessions.session_agent import check_agent
from hiveyard.engine.workspace.directory import Meta, Workspace
from hiveyard.engine.workspace.session_files import copy_error
from hiveyard.kit.names import new_id, slug
from hiveyard.kit.text import one_line
from hiveyard.kit.trees import remove_tree, walk
from hiveyard.machines.shared.unpacking import unpack
from hiveyard.repository.git import git, git_output
from hiveyard.repository.packs import MEMORY, index_pack, limit_memory, pack_error
from hiveyard.repository.submodules import bare_copy
from hiveyard.store import journal, names, views
from hiveyard.store.outbox import uncollected

_ID = re.compile(r"[2-9bcdfghjkmnpqrstvwxz]{10}\Z")
_INCONSISTENT = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_MAX_LINE = 64 << 20
_HEADER = _MAX_SMALL = 4 << 20
_TIMEOUT = 3600.0
_REF = re.compile(r"refs/(?:heads|tags|remotes|hiveyard)/[^\s~^:?*\[\\\x00-\x1f\x7f]{1,400}\Z")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
# Fields of the request that name a path or port of the other host, or would open this host's network.
_DROPPED_FIELDS = ("record", "tape", "network", "port", "include_dirty", "provider")
# Fields of the request that are printed as they are.
_PRINTED_FIELDS = ("model", "account", "branch", "base")
# Events that would control this host, or describe resources that it does not have. For instance a fork names an image
# to build and another session's snapshot to continue from. `SessionImported` records the session's origin instead.
_NOT_IMPORTED = MachineEvent | PortEvent | SnapshotEvent | TaskEvent | SessionForked | SessionPaused | SessionUnpaused


_MAX_TURN = 2**31 - 1
"""Maximum number of a turn."""
_MAX_NUMBER = 2**53
"""Maximum of a number in an event: the database can store sums of such numbers."""
# The journal is replayed in one write, and all other writes wait for it. One turn may have 256 MiB of output
# (`output_limit_mib`), and a few thousand turns have a million events.
_MAX_JOURNAL_BYTES = 1 << 30
_MAX_EVENTS = 1_000_000
_PIECE = 1 << 20


class _Line(msgspec.Struct):
    at: float
    turn: Annotated[int, msgspec.Meta(ge=1, le=_MAX_TURN)] | None = None
    body: msgspec.Raw = msgspec.Raw(b"")
    raw: bytes | None = None


class Imports:
    """The service that imports sessions."""

    def __init__(self, resources: Resources) -> None:
        self._r = resources

    async def import_archive(
        self, path: Path, *, new: bool = False, name: str | None = None, provider: str | None = None
    ) -> str:
        """Import the archive at `path`; return the id of the session, which is stopped and can be resumed.

        The session keeps its id unless it is to be `new`, which is required if that id exists here. Raises BadInput,
        BadArchive, NoSpace, ProviderUnavailable; then nothing of the archive is left."""
        if name is not None:
            check_name(name)
        if not path.is_file():
            raise BadInput(f"{path} is not a file", hint="hv export ID FILE makes one")
        scratch = Workspace(self._r.sessions / f".import-{new_id()}")
        try:
            await anyio.to_thread.run_sync(_unpack, path, scratch.root, self._r.settings.reserve)
            manifest = read_manifest(_read_small(scratch.root / layout.MANIFEST))
            check_agent(SpawnRequest(repo="", agent=manifest.agent), manifest.agent)
            id = await self._id(manifest, new)
            choice = await self._place(manifest, provider)
            await _repositories(scratch, manifest)
            await self._move_into_place(scratch, id, manifest)
            return await self._record(id, manifest, choice, name)
        except OSError as error:
            raise copy_error(str(path), error) from error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(partial(remove_tree, scratch.root, quiet=True))

    async def _id(self, manifest: Manifest, new: bool) -> str:
        if new:
            return new_id()
        if not _ID.match(manifest.id):
            raise BadArchive(f"the archive's id is not valid: {manifest.id[:80]!r}", hint="hv import --new FILE")
        known = await self._r.event_log.read(lambda conn: views.find_session(conn, manifest.id))
        if known is not None or self._r.workspace(manifest.id).root.exists():
            raise BadInput(f"there is already a session {manifest.id} here", hint="hv import --new FILE")
        return manifest.id

    async def _place(self, manifest: Manifest, wanted: str | None) -> Choice:
        """Choose the provider that it ran on before, if that works here, otherwise the strongest one that works."""
        if wanted is not None:
            return await choose(wanted, self._r.providers)
        before = self._r.providers.get(manifest.provider)
        works = before is not None and (await before.readiness()).ok
        return await choose(manifest.provider if works else "auto", self._r.providers)

    async def _move_into_place(self, scratch: Workspace, id: str, manifest: Manifest) -> None:
        """Turn the unpacked files into a session's directory, marked as unfinished until it is journaled."""
        own, now = self._r.workspace(id), self._r.clock.now()

        def move() -> None:
            scratch.unfinished.touch()
            scratch.create_keys(())
            (scratch.root / layout.EVENTS).rename(scratch.root / "events.imported")
            scratch.write(
                Meta(
                    id=id, name=manifest.name, repo="", agent=manifest.agent, status="stopped", created=now, updated=now
                )
            )
            scratch.root.rename(own.root)

        await anyio.to_thread.run_sync(move)

    async def _record(self, id: str, manifest: Manifest, choice: Choice, name: str | None) -> str:
        own = self._r.workspace(id)
        with anyio.CancelScope(shield=True):
            try:
                write = partial(self._write, id=id, manifest=manifest, choice=choice, name=name)
                await self._r.event_log.store.write(write)
            except (HiveyardError, OSError) as error:
                await anyio.to_thread.run_sync(partial(remove_tree, own.root, quiet=True))
                if isinstance(error, IllegalMove | NotFound):
                    raise BadArchive(f"the archive's journal contradicts itself: {error.message}") from error
                raise
            for left in ("events.imported", layout.MANIFEST, layout.BUNDLE, "shallow"):
                (own.root / left).unlink(missing_ok=True)
            await anyio.to_thread.run_sync(partial(remove_tree, own.root / layout.SUBMODULES, quiet=True))
            own.unfinished.unlink()
        return id

    def _write(self, conn: Connection, *, id: str, manifest: Manifest, choice: Choice, name: str | None) -> None:
        wanted = name or slug(manifest.name, limit=40, fallback="session")
        free = names.free_slug(conn, wanted)
        if name is not None and free != name:
            raise BadInput(f"there is already a session or task called {name}", hint=f"--name {free}")
        with uncollected(conn):
            self._replay(conn, free, id, manifest)
        session = views.session(conn, id)
        if session.phase is not Phase.STOPPED or session.base is None:
            raise BadArchive(f"the archive's session is {session.phase.value}, not stopped")
        try:
            session_request(session)
        except BadInput as error:
            raise BadArchive(f"the request of the archive's session is not valid: {error.message}") from None
        result = views.result(conn, id)
        recorded = [(session.base, session.branch)] + ([(result.base, result.branch)] if result else [])
        if set(recorded) != {(manifest.base, manifest.branch)} or (result and not _SHA.match(result.head)):
            raise BadArchive("the archive's journal and its manifest describe different work")
        placed = SessionPlaced(provider=choice.provider.name, tier=choice.provider.tier.value, why=choice.why)
        imported = SessionImported(
            exported_at=manifest.exported_at, conversation=manifest.conversation, feed_offset=manifest.feed_offset
        )
        for last in (placed, imported):
            journal.record(conn, id, last, at=self._r.clock.now())

    def _replay(self, conn: Connection, free: str, id: str, manifest: Manifest) -> None:
        """Record the events of the archive again, without those that have no meaning on this host."""
        now, began = self._r.clock.now(), False
        for line, body in _events(self._r.workspace(id).root / "events.imported"):
            if isinstance(body, SessionCreated):
                body, began = self._created(body, free, id, manifest), True
            elif isinstance(body, SessionChanged):
                body = self._changed(body)
            _check_numbers(body)
            _check_usage(body)
            at = line.at if math.isfinite(line.at) and 0 <= line.at <= now else now
            if began and not isinstance(body, _NOT_IMPORTED):
                journal.record(conn, id, body, at=at, turn=line.turn, raw=line.raw)

    def _created(self, body: SessionCreated, free: str, id: str, manifest: Manifest) -> SessionCreated:
        """Return the first event, with the request reduced to what a stranger may ask for."""
        known = set(SpawnRequest.__struct_fields__)
        asked: dict[str, Any] = {
            key: value for key, value in (body.request or {}).items() if key in known and key not in _DROPPED_FIELDS
        }
        repo = one_line(body.repo, 4096)
        asked |= {"repo": repo, "agent": manifest.agent}
        asked |= {name: one_line(asked[name]) for name in _PRINTED_FIELDS if isinstance(asked.get(name), str)}
        asked.pop("name", None)
        asked["mcp"] = _local_servers(asked.get("mcp"))
        if not self._has_image(asked.get("image")):
            asked.pop("image", None)
        if self._r.workspace(id).tape.exists():
            asked["tape"] = str(self._r.workspace(id).tape)
        try:
            request = spawn_from_json(asked).as_json()
        except BadInput as error:
            raise BadArchive(f"the request of the archive's session is not valid: {error.message}") from None
        return SessionCreated(slug=free, repo=repo, agent=manifest.agent, request=request)

    def _changed(self, body: SessionChanged) -> SessionChanged:
        """Return a change of the request, reduced like the request."""
        image = body.image if self._has_image(body.image) else None
        model, mcp = None if body.model is None else one_line(body.model), _local_servers(body.mcp)
        return msgspec.structs.replace(body, image=image, model=model, mcp=mcp)

    def _has_image(self, name: object) -> bool:
        """Return whether an image of this name is available here. A recipe is refused because it is a program, and the
        host's image because strangers may not use the host's files."""
        if not isinstance(name, str) or name == HOST.name or "/" in name or name.endswith(".toml"):
            return False
        try:
            self._r.images.check(name)
        except (NoSuchImage, BadInput):
            return False
        return True


def _local_servers(servers: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the tool servers that are inside the machine: here its network is closed."""
    try:
        return servers and {
            name: server for name, server in servers.items() if parsed(server, ToolServer, "tool server").is_local
        }
    except (AttributeError, BadInput):
        raise BadArchive("the tool servers of the archive's session are not valid") from None


def _check_numbers(value: object) -> None:
    """Check that the database can store all numbers of an event, and sums of them. Raises BadArchive."""
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.astuple(value):
            _check_numbers(field)
    elif isinstance(value, int | float) and not abs(value) <= _MAX_NUMBER:
        raise BadArchive("the archive's journal contains a number that is too large")


def _check_usage(body: AnyBody) -> None:
    """Check that no usage is negative: it would allow the session to spend more than its budget here."""
    if isinstance(body, ModelCalled) and any((amount or 0) < 0 for amount in msgspec.structs.astuple(body.usage)):
        raise BadArchive("the archive's journal contains a negative usage of a model")


def _unpack(path: Path, into: Path, reserve: int) -> None:
    """Unpack the archive, and check that it contains exactly the files of an exported session. Raises BadArchive,
    NoSpace."""
    try:
        with gzip.open(path, "rb") as packed:
            unpack(packed, into, reserve=reserve)  # type: ignore[arg-type]
    except (BadInput, gzip.BadGzipFile, EOFError) as error:
        raise BadArchive(f"{path} is not an exported session: {error}", hint="hv export ID FILE makes one") from None
    except OSError as error:
        if error.errno in _INCONSISTENT:
            raise BadArchive(f"the archive's entries do not fit together: {error.strerror}") from error
        raise
    for entry in into.iterdir():
        fits = entry.name in (layout.DIRECTORIES if entry.is_dir() else layout.FILES)
        if entry.is_symlink() or not fits or not (entry.is_dir() or entry.is_file()):
            raise BadArchive(f"the archive contains an entry that no exported session has: {entry.name[:80]!r}")
        if entry.is_dir() and entry.name != "shared":
            _check_plain(entry)
    for name in (layout.MANIFEST, layout.EVENTS, layout.BUNDLE, "shared"):
        if not (into / name).exists():
            raise BadArchive(f"the archive is incomplete: there is no {name}")
    _check_length(into / layout.EVENTS)
    into.chmod(0o700)


def _read_small(file: Path) -> bytes:
    """Return the content of a small file. Raises BadArchive for one that is longer than the limit."""
    with file.open("rb") as small:
        data = small.read(_MAX_SMALL + 1)
    if len(data) > _MAX_SMALL:
        raise BadArchive(f"the archive's {file.name} is longer than {_MAX_SMALL} bytes")
    return data


def _check_length(file: Path) -> None:
    """Check the length of the journal: a small archive can contain one that would be replayed for hours."""
    if file.stat().st_size > _MAX_JOURNAL_BYTES or _lines(file) > _MAX_EVENTS:
        raise BadArchive(
            f"the archive's journal is longer than {_MAX_JOURNAL_BYTES >> 20} MiB, or than {_MAX_EVENTS} events"
        )


def _lines(file: Path) -> int:
    with file.open("rb") as whole:
        return sum(piece.count(b"\n") for piece in iter(partial(whole.read, _PIECE), b""))


def _check_plain(directory: Path) -> None:
    """Check that a directory contains no links: the host reads its files by name."""
    expected, met = 1, 0
    for directories, files, at in walk(directory):
        expected, met = expected + len(directories), met + 1
        for name in files:
            if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                raise BadArchive(f"the archive contains a link where none is allowed: {name[:80]!r}")
    if met < expected:
        raise BadArchive(f"the archive contains a directory that cannot be read, in {directory.name}")


def _events(file: Path) -> Iterator[tuple[_Line, AnyBody]]:
    decoder = msgspec.json.Decoder(AnyBody)
    with file.open("rb") as lines:
        while text := lines.readline(_MAX_LINE):
            try:
                line = msgspec.json.decode(text, type=_Line)
            except msgspec.MsgspecError as error:
                raise BadArchive(f"the archive's journal is not valid: {error}") from None
            try:
                yield line, decoder.decode(line.body)
            except msgspec.MsgspecError:
                continue  # an event of a newer Hiveyard that this one does not know


# --- repositories ----------------------------------------------------------------------------------------------------


async def _repositories(scratch: Workspace, manifest: Manifest) -> None:
    """Create the bare repositories from the bundles; git checks every object. Raises BadArchive."""
    if not _SHA.match(manifest.base):
        raise BadArchive(f"the archive's base is not a commit: {manifest.base[:80]!r}")
    try:
        await _repository(scratch.origin, scratch.root / layout.BUNDLE, manifest, scratch.root / "shallow")
        for one in manifest.submodules:
            file = scratch.root / layout.SUBMODULES / f"{one.copy}.bundle"
            await _repository(bare_copy(scratch.origin, one), file, manifest, file.with_suffix(".shallow"))
        if manifest.submodules:
            (scratch.origin / "submodules.json").write_bytes(msgspec.json.encode(manifest.submodules))
        await git_output("cat-file", "-e", manifest.base + "^{commit}", at=scratch.origin)
        await git_output("check-ref-format", "--branch", manifest.branch, at=scratch.origin)
        for key, value in (("name", manifest.identity[0]), ("email", manifest.identity[1])):
            await git_output("config", f"hiveyard.{key}", _printable(value), at=scratch.origin)
        await git_output("config", "hiveyard.baseref", _printable(manifest.base_ref), at=scratch.origin)
    except RepositoryError as error:
        raise BadArchive(f"the archive's repository is not valid: {error.message}") from error


async def _repository(origin: Path, bundle: Path, manifest: Manifest, shallow: Path) -> None:
    origin.parent.mkdir(parents=True, exist_ok=True)
    words = ("init", "--quiet", "--bare", "--template=", f"--object-format={manifest.object_format}")
    await git_output(*words, str(origin), at=origin.parent)
    refs, offset = _header(bundle)
    if shallow.exists():
        lines = _read_small(shallow).decode("ascii", "replace").split()
        if not all(map(_SHA.match, lines)):
            raise BadArchive("the archive's shallow file names something that is not a commit")
        (origin / "shallow").write_text("".join(f"{line}\n" for line in lines))
    done = await index_pack(origin, bundle, offset)
    if not done.ok:
        raise RepositoryError(pack_error(done, MEMORY))
    moves = "".join(f"create {ref} {commit}\n" for ref, commit in refs.items())
    await git_output("update-ref", "--stdin", at=origin, stdin=moves.encode())
    ask = ("rev-list", "--objects", "--quiet", "--all")
    listed = await git(*ask, at=origin, timeout=_TIMEOUT, prefix=limit_memory(MEMORY))
    if not listed.ok:
        raise RepositoryError(f"it is incomplete: {pack_error(listed, MEMORY)}")


def _header(bundle: Path) -> tuple[dict[str, str], int]:
    """Return the references of a bundle, and the offset at which its pack begins."""
    try:
        with bundle.open("rb") as file:
            start = file.read(_HEADER)
    except FileNotFoundError:
        raise BadArchive(f"the archive is incomplete: there is no {bundle.name}") from None
    top, blank, _ = start.partition(b"\n\n")
    first, *lines = top.decode("utf-8", "replace").split("\n")
    if not blank or first not in ("# v2 git bundle", "# v3 git bundle"):
        raise BadArchive(f"the archive's {bundle.name} is not a git bundle")
    refs = {}
    for line in lines:
        commit, _, ref = line.partition(" ")
        if line in ("@object-format=sha1", "@object-format=sha256") or ref == "HEAD":
            continue
        if not _SHA.match(commit) or not _REF.match(ref) or ".." in ref:
            raise BadArchive(f"the archive's {bundle.name} contains a reference that is not allowed: {line[:120]!r}")
        refs[ref] = commit
    return refs, len(top) + len(blank)


def _printable(value: str) -> str:
    return "".join(character for character in value if character.isprintable())[:200]
