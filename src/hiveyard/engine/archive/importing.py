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
from hiveyard.core.states import Phase
from hiveyard.engine.archive import manifest as layout
from hiveyard.engine.archive.manifest import Manifest, read_manifest
from hiveyard.engine.archive.unpacking import unpack
from hiveyard.engine.placement.provider_choice import Choice, choose
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.agent_terminal import terminal_agent
from hiveyard.engine.sessions.request import SpawnRequest, check_name, request_of
from hiveyard.engine.snapshots.service import uncopied
from hiveyard.engine.workspace.directory import Meta, Workspace
from hiveyard.kit.names import new_id, slug
from hiveyard.kit.text import one_line
from hiveyard.kit.trees import remove_tree, walk
from hiveyard.repository.git import git, git_output
from hiveyard.repository.packs import MEMORY, index_pack, limit_memory, pack_error
from hiveyard.repository.submodules import bare_copy
from hiveyard.store import journal, names, views
from hiveyard.store.outbox import uncollected

_ID = re.compile(r"[2-9bcdfghjkmnpqrstvwxz]{10}\Z")
_TANGLED = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_LONGEST = 64 << 20
_HEADER = _SMALL = 4 << 20
_TIMEOUT = 3600.0
_REF = re.compile(r"refs/(?:heads|tags|remotes|hiveyard)/[^\s~^:?*\[\\\x00-\x1f\x7f]{1,400}\Z")
_SHA = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
# Of what was asked for: what names a place of the other host, or would open this one's network.
_NOT_TAKEN = ("record", "tape", "network", "port", "include_dirty", "provider")
# Of what was asked for: names that are shown as they are.
_SHOWN = ("model", "account", "branch", "base")
# What would decide here what this host does, or tell of what it does not have. A fork names an image to build and
# another session's snapshot to go on from; where the session came from, `SessionImported` says.
_ELSEWHERE = MachineEvent | PortEvent | SnapshotEvent | TaskEvent | SessionForked | SessionPaused | SessionUnpaused


_MOST = 2**31 - 1
"""The largest number of a turn."""
_LARGEST = 2**53
"""The largest number in an event: sums of them fit into a database's."""
# The journal is replayed in one write, for which all others wait. A turn may say 256 MiB (`output_limit_mib`), and a
# million events are those of some thousand turns.
_JOURNAL = 1 << 30
_LINES = 1_000_000
_PIECE = 1 << 20


class _Line(msgspec.Struct):
    at: float
    turn: Annotated[int, msgspec.Meta(ge=1, le=_MOST)] | None = None
    body: msgspec.Raw = msgspec.Raw(b"")
    raw: bytes | None = None


class Imports:
    """Takes sessions in."""

    def __init__(self, resources: Resources) -> None:
        self._r = resources

    async def take(self, path: Path, *, new: bool = False, name: str | None = None, provider: str | None = None) -> str:
        """Take in the archive at `path`; returns the session's id. It is stopped: resume it.

        Its own id is kept, unless one of that id is here: then it must be `new`. Raises BadInput, BadArchive, NoSpace,
        ProviderUnavailable; then there is nothing of it."""
        if name is not None:
            check_name(name)
        if not path.is_file():
            raise BadInput(f"{path} is no file", hint="hv export ID FILE makes one")
        scratch = Workspace(self._r.sessions / f".import-{new_id()}")
        try:
            await anyio.to_thread.run_sync(_unpack, path, scratch.root, self._r.settings.reserve)
            manifest = read_manifest(_small(scratch.root / layout.MANIFEST))
            terminal_agent(manifest.agent)
            id = await self._id(manifest, new)
            choice = await self._place(manifest, provider)
            await _repositories(scratch, manifest)
            await self._settle(scratch, id, manifest)
            return await self._record(id, manifest, choice, name)
        except OSError as error:
            raise uncopied(str(path), error) from error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(partial(remove_tree, scratch.root, quiet=True))

    async def _id(self, manifest: Manifest, new: bool) -> str:
        if new:
            return new_id()
        if not _ID.match(manifest.id):
            raise BadArchive(f"the archive's id is none: {manifest.id[:80]!r}", hint="hv import --new FILE")
        known = await self._r.event_log.read(lambda conn: views.find_session(conn, manifest.id))
        if known is not None or self._r.workspace(manifest.id).root.exists():
            raise BadInput(f"there is already a session {manifest.id} here", hint="hv import --new FILE")
        return manifest.id

    async def _place(self, manifest: Manifest, wanted: str | None) -> Choice:
        """Where it ran before, when that works here, else the strongest that does."""
        if wanted is not None:
            return await choose(wanted, self._r.providers)
        before = self._r.providers.get(manifest.provider)
        works = before is not None and (await before.readiness()).ok
        return await choose(manifest.provider if works else "auto", self._r.providers)

    async def _settle(self, scratch: Workspace, id: str, manifest: Manifest) -> None:
        """Make a session's directory of what was unpacked, marked as unfinished until it is journaled."""
        own, now = self._r.workspace(id), self._r.clock.now()

        def settle() -> None:
            scratch.unfinished.touch()
            scratch.create_keys(())
            (scratch.root / layout.EVENTS).rename(scratch.root / "events.imported")
            scratch.write(
                Meta(
                    id=id, name=manifest.name, repo="", agent=manifest.agent, status="stopped", created=now, updated=now
                )
            )
            scratch.root.rename(own.root)

        await anyio.to_thread.run_sync(settle)

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
            request_of(session)
        except BadInput as error:
            raise BadArchive(f"what the archive's session asked for makes no sense: {error.message}") from None
        result = views.result(conn, id)
        said = [(session.base, session.branch)] + ([(result.base, result.branch)] if result else [])
        if set(said) != {(manifest.base, manifest.branch)} or (result and not _SHA.match(result.head)):
            raise BadArchive("the archive's journal and its manifest tell of different work")
        placed = SessionPlaced(provider=choice.provider.name, tier=choice.provider.tier.value, why=choice.why)
        imported = SessionImported(
            exported_at=manifest.exported_at, conversation=manifest.conversation, feed_offset=manifest.feed_offset
        )
        for last in (placed, imported):
            journal.record(conn, id, last, at=self._r.clock.now())

    def _replay(self, conn: Connection, free: str, id: str, manifest: Manifest) -> None:
        """Record again what happened there, as far as it means anything here."""
        now, began = self._r.clock.now(), False
        for line, body in _events(self._r.workspace(id).root / "events.imported"):
            if isinstance(body, SessionCreated):
                body, began = self._created(body, free, id, manifest), True
            _check_numbers(body)
            _check_paid(body)
            at = line.at if math.isfinite(line.at) and 0 <= line.at <= now else now
            if began and not isinstance(body, _ELSEWHERE):
                journal.record(conn, id, body, at=at, turn=line.turn, raw=line.raw)

    def _created(self, body: SessionCreated, free: str, id: str, manifest: Manifest) -> SessionCreated:
        """Return the first event, with the request reduced to what a stranger may ask for."""
        known = set(SpawnRequest.__struct_fields__)
        asked: dict[str, Any] = {
            key: value for key, value in (body.request or {}).items() if key in known and key not in _NOT_TAKEN
        }
        repo = one_line(body.repo, 4096)
        asked |= {"repo": repo, "agent": manifest.agent}
        asked |= {name: one_line(asked[name]) for name in _SHOWN if isinstance(asked.get(name), str)}
        asked.pop("name", None)
        if not self._has_image(asked.get("image")):
            asked.pop("image", None)
        if self._r.workspace(id).tape.exists():
            asked["tape"] = str(self._r.workspace(id).tape)
        try:
            request = msgspec.convert(asked, SpawnRequest).as_json()
        except msgspec.ValidationError as error:
            raise BadArchive(f"what the archive's session asked for makes no sense: {error}") from None
        return SessionCreated(slug=free, repo=repo, agent=manifest.agent, request=request)

    def _has_image(self, name: object) -> bool:
        """A recipe is a program, and the host's own files are not for strangers."""
        if not isinstance(name, str) or name == HOST.name or "/" in name or name.endswith(".toml"):
            return False
        try:
            self._r.images.check(name)
        except (NoSuchImage, BadInput):
            return False
        return True


def _check_numbers(value: object) -> None:
    """Numbers that no database holds, and sums of them, are of nobody's session."""
    if isinstance(value, msgspec.Struct):
        for field in msgspec.structs.astuple(value):
            _check_numbers(field)
    elif isinstance(value, int | float) and not abs(value) <= _LARGEST:
        raise BadArchive("the archive's journal tells of a number that is none of a session's")


def _check_paid(body: AnyBody) -> None:
    """Nobody gets money back for what was asked: it would be spent here, above the budget."""
    if isinstance(body, ModelCalled) and any((amount or 0) < 0 for amount in msgspec.structs.astuple(body.usage)):
        raise BadArchive("the archive's journal tells of a model that was asked for less than nothing")


def _unpack(path: Path, into: Path, reserve: int) -> None:
    """Unpack, and see that there is what an archive holds, and nothing else. Raises BadArchive, NoSpace."""
    try:
        with gzip.open(path, "rb") as packed:
            unpack(packed, into, reserve=reserve)  # type: ignore[arg-type]
    except (BadInput, gzip.BadGzipFile, EOFError) as error:
        raise BadArchive(f"{path} is no exported session: {error}", hint="hv export ID FILE makes one") from None
    except OSError as error:
        if error.errno in _TANGLED:
            raise BadArchive(f"the archive's entries do not fit together: {error.strerror}") from error
        raise
    for entry in into.iterdir():
        fits = entry.name in (layout.DIRECTORIES if entry.is_dir() else layout.FILES)
        if entry.is_symlink() or not fits or not (entry.is_dir() or entry.is_file()):
            raise BadArchive(f"the archive holds what no session does: {entry.name[:80]!r}")
        if entry.is_dir() and entry.name != "shared":
            _check_plain(entry)
    for name in (layout.MANIFEST, layout.EVENTS, layout.BUNDLE, "shared"):
        if not (into / name).exists():
            raise BadArchive(f"the archive is not whole: there is no {name}")
    _check_length(into / layout.EVENTS)
    into.chmod(0o700)


def _small(file: Path) -> bytes:
    """All of a file that is read at once. Raises BadArchive when it is longer than any of its kind."""
    with file.open("rb") as small:
        data = small.read(_SMALL + 1)
    if len(data) > _SMALL:
        raise BadArchive(f"the archive's {file.name} is longer than {_SMALL} bytes")
    return data


def _check_length(file: Path) -> None:
    """A small archive can hold a journal that would be replayed for hours."""
    if file.stat().st_size > _JOURNAL or _lines(file) > _LINES:
        raise BadArchive(f"the archive's journal is longer than {_JOURNAL >> 20} MiB, or than {_LINES} events")


def _lines(file: Path) -> int:
    with file.open("rb") as whole:
        return sum(piece.count(b"\n") for piece in iter(partial(whole.read, _PIECE), b""))


def _check_plain(directory: Path) -> None:
    """The host's own files are read by name: no link is among them."""
    expected, met = 1, 0
    for directories, files, at in walk(directory):
        expected, met = expected + len(directories), met + 1
        for name in files:
            if not stat.S_ISREG(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                raise BadArchive(f"the archive holds a link where none may be: {name[:80]!r}")
    if met < expected:
        raise BadArchive(f"the archive holds a directory that cannot be looked into, in {directory.name}")


def _events(file: Path) -> Iterator[tuple[_Line, AnyBody]]:
    decoder = msgspec.json.Decoder(AnyBody)
    with file.open("rb") as lines:
        while text := lines.readline(_LONGEST):
            try:
                line = msgspec.json.decode(text, type=_Line)
            except msgspec.MsgspecError as error:
                raise BadArchive(f"the archive's journal makes no sense: {error}") from None
            try:
                yield line, decoder.decode(line.body)
            except msgspec.MsgspecError:
                continue  # of a newer Hiveyard: what it did not move here cannot be told


# --- its repositories ------------------------------------------------------------------------------------------------


async def _repositories(scratch: Workspace, manifest: Manifest) -> None:
    """Make the bare repositories anew from bundles whose every object git has checked. Raises BadArchive."""
    if not _SHA.match(manifest.base):
        raise BadArchive(f"the archive's base is no commit: {manifest.base[:80]!r}")
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
            await git_output("config", f"hiveyard.{key}", _plain(value), at=scratch.origin)
        await git_output("config", "hiveyard.baseref", _plain(manifest.base_ref), at=scratch.origin)
    except RepositoryError as error:
        raise BadArchive(f"the archive's repository is not sound: {error.message}") from error


async def _repository(origin: Path, bundle: Path, manifest: Manifest, shallow: Path) -> None:
    origin.parent.mkdir(parents=True, exist_ok=True)
    words = ("init", "--quiet", "--bare", "--template=", f"--object-format={manifest.object_format}")
    await git_output(*words, str(origin), at=origin.parent)
    refs, offset = _header(bundle)
    if shallow.exists():
        lines = _small(shallow).decode("ascii", "replace").split()
        if not all(map(_SHA.match, lines)):
            raise BadArchive("the archive's repository ends at what is no commit")
        (origin / "shallow").write_text("".join(f"{line}\n" for line in lines))
    done = await index_pack(origin, bundle, offset)
    if not done.ok:
        raise RepositoryError(pack_error(done, MEMORY))
    moves = "".join(f"create {ref} {commit}\n" for ref, commit in refs.items())
    await git_output("update-ref", "--stdin", at=origin, stdin=moves.encode())
    ask = ("rev-list", "--objects", "--quiet", "--all")
    whole = await git(*ask, at=origin, timeout=_TIMEOUT, prefix=limit_memory(MEMORY))
    if not whole.ok:
        raise RepositoryError(f"it is not complete: {pack_error(whole, MEMORY)}")


def _header(bundle: Path) -> tuple[dict[str, str], int]:
    """The references of a bundle, and where its pack begins."""
    try:
        with bundle.open("rb") as file:
            start = file.read(_HEADER)
    except FileNotFoundError:
        raise BadArchive(f"the archive is not whole: there is no {bundle.name}") from None
    top, blank, _ = start.partition(b"\n\n")
    first, *lines = top.decode("utf-8", "replace").split("\n")
    if not blank or first not in ("# v2 git bundle", "# v3 git bundle"):
        raise BadArchive(f"the archive's {bundle.name} is no git bundle")
    refs = {}
    for line in lines:
        commit, _, ref = line.partition(" ")
        if line in ("@object-format=sha1", "@object-format=sha256") or ref == "HEAD":
            continue
        if not _SHA.match(commit) or not _REF.match(ref) or ".." in ref:
            raise BadArchive(f"the archive's {bundle.name} holds what it may not: {line[:120]!r}")
        refs[ref] = commit
    return refs, len(top) + len(blank)


def _plain(value: str) -> str:
    return "".join(character for character in value if character.isprintable())[:200]
