"""Credentials for a guest: what a program in it needs to find, and the seam that puts it there.

A profile holds the placeholder of a session's door, or a real secret (`real`). A real one in a guest can be read by
everything that runs there: it is installed only when its profile was asked for by name, and that is announced.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Guest
from hiveyard.kit.secret import Secret
from hiveyard.kit.text import one_line

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_OTHERS = 0o077
LARGEST_FILE = 1 << 20
"""Bytes that a credential file may have."""
_SHORTEST = 8
"""Characters of a line that is masked by itself. Shorter ones (`{`, `type`, a port) stand in whatever anybody says, and
with stars in their place nobody could read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialDirectory:
    """A directory that the guest's user owns, with exactly this mode, also when it was there before."""

    path: str
    mode: int = 0o700

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_mode(self.path, self.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFile:
    """A file that the guest's user owns. `content` is its text, or with `encoding` base64 the base64 of its bytes.

    `secret` is False for one that anybody may see: only such a file may have a mode that lets others read it.
    """

    path: str
    content: Secret
    mode: int = 0o600
    encoding: Literal["utf-8", "base64"] = "utf-8"
    secret: bool = True

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_mode(self.path, self.mode)
        if self.secret and self.mode & _OTHERS:
            raise BadInput(
                f"the credential file {_shown(self.path)} would have mode {self.mode:04o}: others could read it",
                hint="mode 0600, or secret=False when there is no secret in it",
            )
        if len(self.data()) > LARGEST_FILE:
            raise BadInput(f"the credential file {_shown(self.path)} is larger than {LARGEST_FILE} bytes")

    def data(self) -> bytes:
        """The file's bytes. Raises BadInput for what is not in `encoding`."""
        text = self.content.reveal()
        with contextlib.suppress(ValueError):  # the error itself holds the content
            return text.encode() if self.encoding == "utf-8" else base64.b64decode(text, validate=True)
        raise BadInput(f"the content for {_shown(self.path)} is not {self.encoding}")

    def masked(self) -> list[Secret]:
        """What of it must not be shown: the content as it was given and as it lies there, and each of its lines, which
        is what programs quote; all without the space around it. Nothing of a file that anybody may see."""
        if not self.secret:
            return []
        whole = self.data().decode("utf-8", "surrogateescape")
        lines = {line.strip() for line in whole.split("\n")}
        parts = {self.content.reveal().strip(), whole.strip(), *(line for line in lines if len(line) >= _SHORTEST)}
        return [Secret(part) for part in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialProfile:
    """What one program needs in a guest: directories (parents first), files, and a command that tells whether they
    work.

    `secrets` are the values inside the files that must never be shown; the files' whole contents are masked too, and
    each line of them. `real`: they are worth something outside of this session. `check` must not take its words from a
    secret: its argv and environment can be seen in the guest.
    """

    name: str
    directories: Sequence[CredentialDirectory] = ()
    files: Sequence[CredentialFile] = ()
    secrets: Sequence[Secret] = ()
    real: bool = False
    check: Command | None = None
    check_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise BadInput(f"{_shown(self.name)} is no name for a profile: 1 to 63 of a-z, 0-9 and -")
        if not self.files and not self.directories:
            raise BadInput(f"the profile {self.name} has neither a file nor a directory")
        if not self.check_seconds > 0:
            raise BadInput(f"the check of {self.name} has {self.check_seconds} seconds: it must be more than 0")

    def masked(self) -> list[Secret]:
        """All that must not be shown."""
        return [*self.secrets, *(secret for file in self.files for secret in file.masked())]


class Installed(NamedTuple):
    """A profile that is in a guest, read back and, where it has a check, checked."""

    profile: str
    paths: tuple[str, ...]
    real: bool
    checked: bool


class CredentialsInstaller(Protocol):
    """Puts profiles into a guest."""

    async def install(
        self, guest: Guest, profiles: Sequence[CredentialProfile], *, real: Collection[str] = ()
    ) -> list[Installed]:
        """Install profiles in their order: of each the directories in their order, then the files in theirs, then
        everything is read back (kind, owner, mode, content), then its check is run.

        `real` names the profiles that may bring a real secret. All or nothing: when this raises, is cancelled or
        returns, no profile is half installed; what a failed installation replaced is back. Installing again is safe.
        No error, and nothing it comes from, shows a secret.

        Raises BadInput (two profiles write the same path) and RealSecretRefused before anything is written;
        CredentialsNotInstalled, CredentialsCheckFailed; MachineLost."""


def _check_path(path: str) -> None:
    if "\0" in path:
        raise BadInput(f"a path cannot contain a NUL character: {_shown(path)}")
    if not path.startswith(("/", "~/")):
        raise BadInput(f"a credential's path is absolute or starts with ~/, not {_shown(path)}")
    parts = path.split("/")
    if ".." in parts or "." in parts:
        raise BadInput(f"a credential's path has no . or .. in it: {_shown(path)}", hint="write out where it leads to")
    if not parts[-1] or "//" in path:
        raise BadInput(f"a credential's path has no double slash and no slash at its end: {_shown(path)}")


def _check_mode(path: str, mode: int) -> None:
    if not 0 <= mode <= 0o777:
        raise BadInput(f"mode {mode:o} of {_shown(path)} is none: it is 0 to 0777")
    if not mode & 0o400:
        raise BadInput(f"mode {mode:04o} of {_shown(path)} would not let the guest's own user read it")


def _shown(text: str) -> str:
    return repr(one_line(text, 120))
