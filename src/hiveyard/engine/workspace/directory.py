"""A session's directory on the host: what is ours alone, and the one part that its guest can write.

Nothing below `shared` is trusted: it is read by `kit.files.open_beneath` or through the guest, never by git or by
name.
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
"""Bytes of a line that was heard: the file may come from a stranger."""
_PIECE = 1 << 20
_REMOVED = ".removed"


class Meta(msgspec.Struct, kw_only=True, frozen=True):
    """What a directory says of itself, so that it can be understood without the database. It is a copy: the journal
    counts. `ref` is the revision that was asked for, `port` where its ssh is reached; times are seconds since the
    epoch."""

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
    """Version 1, which held the door's key too."""

    id: str
    slug: str
    repo: str
    agent: str
    placeholder: str
    created_at: float


TRANSIENT = (".push-*", ".dirty-*", "shared.half")
"""What lies in a session's directory while it is being made."""


class _Version(msgspec.Struct):
    version: int


class DoorKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What the door takes for a key: what its guest is given, and what guests hold that were forked with their
    memory. None is worth anything at another door."""

    placeholder: str
    inherited: tuple[str, ...] = ()


class Workspace:
    """The paths of one session. Making the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.meta_file = root / "meta.json"
        self.door_file = root / "door.json"
        self.events = root / "events.jsonl"
        self.heard = root / "heard.jsonl"
        self.origin = root / "origin.git"
        self.shared = root / "shared"
        self.snapshots = root / "snapshots"
        self.result = root / "result"
        self.patch = root / "result" / "changes.patch"
        self.tape = root / "tape.jsonl"
        self.prompts = root / "prompts"
        self.unfinished = root / "unfinished"

    @property
    def exists(self) -> bool:
        return self.meta_file.exists()

    @property
    def begun(self) -> bool:
        """Whether a task or session ever worked here: it is whole, and holds more than was asked for."""
        return self.exists and not self.unfinished.exists() and (self.events.exists() or self.origin.exists())

    def create(
        self, *, id: str, slug: str, repo: str, agent: str, prompt: str, at: float, tape: str | None = None
    ) -> None:
        """Make the directory, whole: `meta.json` is written last. Repeating it is harmless.

        A tape is copied, so that the task does not depend on what happens to the file."""
        if self.exists:
            return
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.shared.mkdir(exist_ok=True)
        write_atomic(self.shared / "prompt.txt", prompt.encode(), mode=0o644)
        if tape is not None:
            shutil.copyfile(tape, self.tape)
        self.keep_keys(())
        self.write(Meta(id=id, name=slug, repo=repo, agent=agent, status="created", created=at, updated=at))

    # --- what it says of itself --------------------------------------------------------------------------------------

    def meta(self) -> Meta:
        """What `meta.json` says; one of an older version is brought up to this one. Raises StoreTooNew for one of a
        newer Hiveyard, SessionDamaged for one that is absent or makes no sense."""
        try:
            data = self.meta_file.read_bytes()
            version = msgspec.json.decode(data, type=_Version).version
            if version > META_VERSION:
                message = f"{self.meta_file} is of version {version}, this Hiveyard knows {META_VERSION}"
                raise StoreTooNew(message, hint="go on with the Hiveyard that wrote it")
            meta = self._upgraded(data) if version == 1 else msgspec.json.decode(data, type=Meta)
        except FileNotFoundError:
            raise self.damaged("there is no meta.json: the directory is half copied, or half removed") from None
        except OSError as error:
            raise self.damaged(f"meta.json cannot be read: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise self.damaged(f"meta.json is not as it was written: {error}") from None
        if meta.id != self.root.name:
            raise self.damaged(f"meta.json is that of session {meta.id[:80]!r}")
        return meta

    def write(self, meta: Meta) -> None:
        """Raises OSError; a directory that was removed meanwhile stays so."""
        data = msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n"
        write_atomic(self.meta_file, data, mode=0o600, parents=False)

    def check(self) -> None:
        """Raises SessionDamaged when a directory is missing that a session needs to go on, StoreTooNew."""
        self.meta()
        if self.shared.is_symlink() or not self.shared.is_dir():
            raise self.damaged("there is no directory shared/: the files of the session are not here")
        if not (self.origin / "HEAD").is_file() or not (self.origin / "objects").is_dir():
            raise self.damaged("origin.git is not a whole repository")

    def check_shared(self, names: Sequence[str]) -> None:
        """Raises SessionDamaged when one of the directories `names` is not in the guest's part."""
        for name in names:
            path = self.shared / name
            if path.is_symlink() or not path.is_dir():
                raise self.damaged(f"there is no directory shared/{name}: the files of the session are not here")

    def _upgraded(self, data: bytes) -> Meta:
        """The key goes into its own file first: whatever interrupts this, it is in one of the two."""
        old = msgspec.json.decode(data, type=_MetaOne)
        if not self.door_file.exists():
            self._write_keys(DoorKeys(placeholder=old.placeholder))
        at = old.created_at
        meta = Meta(id=old.id, name=old.slug, repo=old.repo, agent=old.agent, status="stopped", created=at, updated=at)
        self.write(meta)
        return meta

    def damaged(self, what: str) -> SessionDamaged:
        """The error for a directory in which something is not as it was left."""
        return SessionDamaged(f"{self.root}: {what}", hint="put back what was there, or hv rm")

    # --- what its door takes -----------------------------------------------------------------------------------------

    def keep_keys(self, inherited: Sequence[str]) -> None:
        """Make a key for this session's guest, unless it has one; `inherited` are taken too."""
        if not self.door_file.exists():
            placeholder = "hv-" + secrets.token_urlsafe(24)
            self._write_keys(DoorKeys(placeholder=placeholder, inherited=tuple(inherited)))

    def keys(self) -> DoorKeys:
        """What the door takes; made anew for a directory that came without, and then raises as `meta`, in whose first
        version it was. Raises SessionDamaged."""
        if not self.door_file.exists():
            self.meta()
            self.keep_keys(())
        try:
            return msgspec.json.decode(self.door_file.read_bytes(), type=DoorKeys)
        except OSError as error:
            raise self.damaged(f"door.json cannot be read: {error.strerror}") from None
        except msgspec.MsgspecError as error:
            raise self.damaged(f"door.json is not as it was written: {error}") from None

    def placeholder(self) -> Secret:
        """The key that the guest holds and only this session's door accepts."""
        return Secret(self.keys().placeholder)

    def inherited(self) -> tuple[Secret, ...]:
        """Keys that processes of the guest may hold from before they were forked."""
        return tuple(map(Secret, self.keys().inherited))

    def _write_keys(self, keys: DoorKeys) -> None:
        write_atomic(self.door_file, msgspec.json.encode(keys), mode=0o600)

    # --- the rest ----------------------------------------------------------------------------------------------------

    def heard_lines(self) -> Iterator[bytes]:
        """What was heard of the agent before this session's own journal begins: in the session it was forked from, or
        in another installation. A line that is longer than any of an agent is left out."""
        if self.heard.exists():
            splitter = LineSplitter(limit=_LONGEST)
            with self.heard.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield from _whole(splitter.feed(piece))
            yield from _whole(splitter.finish())

    def tidy(self) -> None:
        """Remove what is in it for a moment alone, and was left there by a daemon that was killed."""
        for pattern in TRANSIENT:
            for path in self.root.glob(pattern):
                remove_tree(path, quiet=True)

    def doom(self) -> None:
        """Mark it as unfinished again, before the journal forgets it: what is left then is of nobody, and goes at the
        next start."""
        # On a full disk there may be no room for the mark, and all the more need to go on.
        with suppress(OSError):
            self.unfinished.touch()

    def put_away(self) -> Path:
        """Move it out of the way, to be removed: whoever still writes into it finds nothing, and its name is free at
        once. Where it is now, which one that is there already stays at; absent is a success. What is left when this is
        killed counts as half-made."""
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
        remove_tree(self.put_away())


def _whole(lines: Sequence[Line]) -> Iterator[bytes]:
    return (line.data for line in lines if not line.cut)
