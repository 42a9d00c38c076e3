"""A session's directory on the host: what is ours alone, and the one part that its guest can write.

Nothing below `shared` is trusted: it is read by `kit.files.open_beneath` or through the guest, never by git or by
name.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import msgspec

from hiveyard.core.errors import StoreTooNew
from hiveyard.kit.files import write_atomic
from hiveyard.kit.secret import Secret

META_VERSION = 1
GUEST_ROOT = "/session"
GUEST_REPO = "/session/repo"
GUEST_PROMPT = "/session/prompt.txt"
GUEST_STATE = "/session/state"


class Meta(msgspec.Struct, kw_only=True, frozen=True):
    """What a directory says of itself, so that it can be understood without the database."""

    version: int = META_VERSION
    id: str
    slug: str
    repo: str
    agent: str
    placeholder: str
    created_at: float


class Workspace:
    """The paths of one session. Making the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.meta_file = root / "meta.json"
        self.events = root / "events.jsonl"
        self.origin = root / "origin.git"
        self.shared = root / "shared"
        self.result = root / "result"
        self.patch = root / "result" / "changes.patch"
        self.tape = root / "tape.jsonl"
        self.prompts = root / "prompts"

    @property
    def exists(self) -> bool:
        return self.meta_file.exists()

    @property
    def begun(self) -> bool:
        """Whether a task ever worked here: it is whole, and holds more than was asked for."""
        return self.exists and (self.events.exists() or self.origin.exists())

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
        meta = Meta(
            id=id, slug=slug, repo=repo, agent=agent, created_at=at, placeholder="hv-" + secrets.token_urlsafe(24)
        )
        write_atomic(self.meta_file, msgspec.json.format(msgspec.json.encode(meta), indent=2) + b"\n", mode=0o600)

    def meta(self) -> Meta:
        """What `meta.json` says. Raises StoreTooNew for one of a newer Hiveyard, FileNotFoundError for none."""
        meta = msgspec.json.decode(self.meta_file.read_bytes(), type=Meta)
        if meta.version > META_VERSION:
            raise StoreTooNew(f"{self.meta_file} is of version {meta.version}, this Hiveyard knows {META_VERSION}")
        return meta

    def placeholder(self) -> Secret:
        """The key that the guest holds and only this session's door accepts."""
        return Secret(self.meta().placeholder)

    def remove(self) -> None:
        """Remove all of it; absent is a success. What is left when this is killed counts as half-made."""
        self.meta_file.unlink(missing_ok=True)
        shutil.rmtree(self.root, ignore_errors=False, onerror=_absent_is_fine)


def _absent_is_fine(function: object, path: str, info: tuple[type[BaseException], BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
