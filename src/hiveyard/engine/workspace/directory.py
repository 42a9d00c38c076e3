"""A session's directory on the host: private files, and `shared` or `disk`, which its guest can write.

Nothing below `shared` is trusted once a guest had it: it is read with `kit.files.open_beneath` or through the guest,
never by git or by path. Only the provider reads `disk`.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from hiveyard.core.errors import SessionDamaged, StoreTooNew
from hiveyard.kit.files import write_atomic
from hiveyard.kit.lines import Line, LineSplitter
from hiveyard.kit.secret import Secret
from hiveyard.kit.trees import remove_tree

META_VERSION = 2
GUEST_ROOT = "/session"
GUEST_REPO = "/session/repo"
GUEST_PROMPT = "/session/prompt.txt"
GUEST_STATE = "/session/state"
_LONGEST = 64 << 20
"""Longest line of `heard.jsonl`, in bytes: the file may come from an untrusted archive."""
_PIECE = 1 << 20
_REMOVED = ".removed"


class Meta(msgspec.Struct, kw_only=True, frozen=True):
    """The content of `meta.json`, which describes a directory without the database. It is a copy; the journal is
    authoritative. `ref` is the requested revision, `port` the ssh port; times are seconds since the epoch."""

    version: int = META_VERSION
    id: str
    name: str
    repo: str
    ref: str | None = None
    branch: str | None = None
    base: str | None = None
    agent: str
    provider: str | None = None
    status: str
    reason: str = ""
    parent: str | None = None
    port: int | None = None
    created: float
    updated: float


class _MetaOne(msgspec.Struct, kw_only=True):
    """Version 1, which also contained the door's key."""

    id: str
    slug: str
    repo: str
    agent: str
    placeholder: str
    created_at: float


TRANSIENT = (".push-*", ".dirty-*", "shared.half", "disk.half", "disk.rewound.half")
"""Temporary files in a session's directory."""


class _Version(msgspec.Struct):
    version: int


class DoorKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The keys that a session's door accepts: that of its guest, and those that a forked guest still has in its memory.
    No other door accepts them."""

    placeholder: str
    inherited: tuple[str, ...] = ()


class Workspace:
    """The paths of one session. Creating the object creates no file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.meta_file = root / "meta.json"
        self.door_file = root / "door.json"
        self.values_file = root / "values.json"
        self.events = root / "events.jsonl"
        self.heard = root / "heard.jsonl"
        self.origin = root / "origin.git"
        self.shared = root / "shared"
        self.disk = root / "disk"
        self.snapshots = root / "snapshots"
        self.result = root / "result"
        self.patch = root / "result" / "changes.patch"
        self.tape = root / "tape.jsonl"
        self.prompts = root / "prompts"
        self.unfinished = root / "unfinished"

    @property
    def files(self) -> Path:
        """The place of the session's files: `disk` once there is one, else `shared`."""
        return self.disk if self.disk.exists() else self.shared

    @property
    def exists(self) -> bool:
        return self.meta_file.exists()

    @property
    def has_started(self) -> bool:
        """Whether a task or session ever started here: the directory is complete and has events or a repository."""
        return self.exists and not self.unfinished.exists() and (self.events.exists() or self.origin.exists())

    def create(
        self, *, id: str, slug: str, repo: str, agent: str, prompt: str, at: float, tape: str | None = None
    ) -> None:
        """Create the directory; `meta.json` is written last. Safe to repeat.

        The tape is copied, so that the task does not depend on the original file."""
        if self.exists:
            return
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.shared.mkdir(exist_ok=True)
        write_atomic(self.shared / "prompt.txt", prompt.encode(), mode=0o644)
        if tape is not None:
            shutil.copyfile(tape, self.tape)
        self.create_keys(())
        self.write(Meta(id=id, name=slug, repo=repo, agent=agent, status="created", created=at, updated=at))

    # --- metadata ----------------------------------------------------------------------------------------------------

    def meta(self) -> Meta:
        """Return the content of `meta.json`; an older version is upgraded. Raises StoreTooNew for a newer version,
        SessionDamaged for a missing or invalid file."""
        try:
            data = self.meta_file.read_bytes()
            version = msgspec.json.decode(data, type=_Version).version
            if version > META_VERSION:
                message = f"{self.meta_file} has version {version}, this Hiveyard supports up to {META_VERSION}"
                raise StoreTooNew(message, hint="use the Hiveyard that wrote it, or a newer one")
            meta = self._upgraded(data) if version == 1 else msgspec.json.decode(data, type=Meta)
        except FileNotFoundError:
            raise self.damaged("there is no meta.json: the directory was copied or removed in part") from None
        except OSError as error:
            raise self.damaged(f"meta.json cannot be read: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise self.damaged(f"meta.json is invalid: {error}") from None
        if meta.id != self.root.name:
            raise self.damaged(f"meta.json belongs to session {meta.id[:80]!r}")
        return meta

    def write(self, meta: Meta) -> None:
        """Write `meta.json`. Raises OSError; a removed directory is not created again."""
        data = msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n"
        write_atomic(self.meta_file, data, mode=0o600, parents=False)

    def check(self) -> None:
        """Raise SessionDamaged if the host's part of what a session needs to resume is missing; raise StoreTooNew."""
        self.meta()
        if not (self.origin / "HEAD").is_file() or not (self.origin / "objects").is_dir():
            raise self.damaged("origin.git is not a complete repository")

    def check_shared(self, names: Sequence[str]) -> None:
        """Raise SessionDamaged if `shared` or one of the directories `names` in it is missing."""
        for path in (self.shared, *(self.shared / name for name in names)):
            if path.is_symlink() or not path.is_dir():
                where = path.relative_to(self.root)
                raise self.damaged(f"there is no directory {where}: the session's files are missing")

    def _upgraded(self, data: bytes) -> Meta:
        """Upgrade version 1. The key is written to its own file first, so that an interruption does not lose it."""
        old = msgspec.json.decode(data, type=_MetaOne)
        if not self.door_file.exists():
            self._write_keys(DoorKeys(placeholder=old.placeholder))
        at = old.created_at
        meta = Meta(id=old.id, name=old.slug, repo=old.repo, agent=old.agent, status="stopped", created=at, updated=at)
        self.write(meta)
        return meta

    def damaged(self, what: str) -> SessionDamaged:
        """Return the error for a directory that was changed from outside."""
        hint = f"restore the files, or remove the session: hv rm {self.root.name}"
        return SessionDamaged(f"{self.root}: {what}", hint=hint)

    # --- the door's keys ---------------------------------------------------------------------------------------------

    def create_keys(self, inherited: Sequence[str]) -> None:
        """Create a key for this session's guest, unless there is one; the door also accepts `inherited`."""
        if not self.door_file.exists():
            placeholder = "hv-" + secrets.token_urlsafe(24)
            self._write_keys(DoorKeys(placeholder=placeholder, inherited=tuple(inherited)))

    def keys(self) -> DoorKeys:
        """Return the keys that the door accepts; they are created for a directory without any. Raises SessionDamaged,
        and as `meta`, whose version 1 contains the key."""
        if not self.door_file.exists():
            self.meta()
            self.create_keys(())
        try:
            return msgspec.json.decode(self.door_file.read_bytes(), type=DoorKeys)
        except OSError as error:
            raise self.damaged(f"door.json cannot be read: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise self.damaged(f"door.json is invalid: {error}") from None

    def placeholder(self) -> Secret:
        """Return the guest's key, which only this session's door accepts."""
        return Secret(self.keys().placeholder)

    def inherited(self) -> tuple[Secret, ...]:
        """Return the keys that processes of a forked guest may still use."""
        return tuple(map(Secret, self.keys().inherited))

    def _write_keys(self, keys: DoorKeys) -> None:
        write_atomic(self.door_file, msgspec.json.encode(keys), mode=0o600)

    # --- other files -------------------------------------------------------------------------------------------------

    def heard_lines(self) -> Iterator[bytes]:
        """Yield the agent's lines from before this session's own journal: from the session it was forked from, or from
        another installation. Lines that are too long are skipped."""
        if self.heard.exists():
            splitter = LineSplitter(limit=_LONGEST)
            with self.heard.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield from _complete(splitter.feed(piece))
            yield from _complete(splitter.finish())

    def tidy(self) -> None:
        """Remove temporary files that a killed daemon left."""
        for pattern in TRANSIENT:
            for path in self.root.glob(pattern):
                remove_tree(path, quiet=True)

    def mark_unfinished(self) -> None:
        """Mark the directory as unfinished before the journal forgets it, so that the next start removes the rest."""
        # On a full disk the mark may fail; the removal is needed all the more.
        with suppress(OSError):
            self.unfinished.touch()

    def rename_for_removal(self) -> Path:
        """Rename the directory, so that its name is free at once and late writers find nothing. Returns its new path; a
        directory that is renamed already stays. Absent is a success. The next start removes what is left if this is
        killed."""
        gone = self.root
        if not self.root.name.endswith(_REMOVED):
            gone = self.root.with_name(f".{self.root.name}{_REMOVED}")
            remove_tree(gone, quiet=True)
            with suppress(FileNotFoundError):
                self.root.rename(gone)
        (gone / self.meta_file.name).unlink(missing_ok=True)
        return gone

    def remove(self) -> None:
        """Remove all of it; absent is a success."""
        remove_tree(self.rename_for_removal())


def _complete(lines: Sequence[Line]) -> Iterator[bytes]:
    return (line.data for line in lines if not line.cut)
