"""Credential profiles: the files that a program in a guest needs, and the seam that installs them.

A profile holds the placeholder of a session's door, or a real secret (`real`). Every program in a guest can read a real
secret there, so it is installed only if its profile was requested by name, and the installation is announced."""

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
"""The largest size of a credential file, in bytes."""
_MIN_LINE = 8
"""The shortest line that is masked, in characters. Shorter lines (`{`, `type`, a port) appear in any text, and masking
them would make it unreadable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialDirectory:
    """A directory owned by the guest's user with exactly this mode, even if it existed before."""

    path: str
    mode: int = 0o700

    def __post_init__(self) -> None:
        _check_path(self.path)
        _check_mode(self.path, self.mode)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFile:
    """A file owned by the guest's user. `content` is its text, or the base64 of its bytes with `encoding` base64.

    `secret` is False for a file that anybody may read. Only such a file may have a mode that lets others read it."""

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
                f"the credential file {_shown(self.path)} has mode {self.mode:04o}, so other users could read it",
                hint="use mode 0600, or secret=False if it contains no secret",
            )
        if len(self.data()) > LARGEST_FILE:
            raise BadInput(f"the credential file {_shown(self.path)} is larger than {LARGEST_FILE} bytes")

    def data(self) -> bytes:
        """Return the file's bytes. Raises BadInput if the content is not in `encoding`."""
        text = self.content.reveal()
        with contextlib.suppress(ValueError):  # the error itself holds the content
            return text.encode() if self.encoding == "utf-8" else base64.b64decode(text, validate=True)
        raise BadInput(f"the content for {_shown(self.path)} is not {self.encoding}")

    def masked(self) -> list[Secret]:
        """Return the texts of this file that must be masked: the given content, the decoded content, and each of its
        lines.

        Programs quote single lines in their output. All texts are stripped of surrounding whitespace. A file with
        `secret` False has none."""
        if not self.secret:
            return []
        decoded = self.data().decode("utf-8", "surrogateescape")
        lines = {line.strip() for line in decoded.split("\n")}
        parts = {
            self.content.reveal().strip(),
            decoded.strip(),
            *(line for line in lines if len(line) >= _MIN_LINE),
        }
        return [Secret(part) for part in parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialProfile:
    """The credentials of one program: directories (parents first), files, and a command that checks whether they work.

    `secrets` are the values inside the files that must never be shown. The contents of the files, and each line of
    them, are masked too. `real` means that they are valid outside of this session. `check` must not contain a secret:
    its argv and environment are visible in the guest. `check_seconds` is its timeout."""

    name: str
    directories: Sequence[CredentialDirectory] = ()
    files: Sequence[CredentialFile] = ()
    secrets: Sequence[Secret] = ()
    real: bool = False
    check: Command | None = None
    check_seconds: float = 60.0

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise BadInput(f"{_shown(self.name)} is not a valid profile name: use 1 to 63 of a-z, 0-9 and -")
        if not self.files and not self.directories:
            raise BadInput(f"the profile {self.name} has neither a file nor a directory")
        if not self.check_seconds > 0:
            raise BadInput(f"the check of {self.name} must have more than 0 seconds, not {self.check_seconds}")

    def masked(self) -> list[Secret]:
        """Return all texts that must be masked."""
        return [*self.secrets, *(secret for file in self.files for secret in file.masked())]


class Installed(NamedTuple):
    """A profile that was installed in a guest, read back and, if it has a check, checked."""

    profile: str
    paths: tuple[str, ...]
    real: bool
    checked: bool


class CredentialsInstaller(Protocol):
    """Installs credential profiles in a guest."""

    async def install(
        self, guest: Guest, profiles: Sequence[CredentialProfile], *, real: Collection[str] = ()
    ) -> list[Installed]:
        """Install profiles in order. For each: make its directories, then its files, read everything back, run its
        check.

        Kind, owner, mode and content are read back. `real` names the profiles that may contain a real secret. The
        installation is atomic: when this raises, is cancelled or returns, no profile is partly installed, and
        everything that a failed installation replaced is restored. Installing again is safe. No error, and no cause of
        an error, shows a secret.

        Raises BadInput (two profiles write the same path) and RealSecretRefused before anything is written;
        CredentialsNotInstalled, CredentialsCheckFailed; MachineLost."""


def _check_path(path: str) -> None:
    if "\0" in path:
        raise BadInput(f"a path cannot contain a NUL character: {_shown(path)}")
    if not path.startswith(("/", "~/")):
        raise BadInput(f"a credential's path must be absolute or start with ~/, not {_shown(path)}")
    parts = path.split("/")
    if ".." in parts or "." in parts:
        raise BadInput(f"a credential's path cannot contain . or ..: {_shown(path)}", hint="use the resolved path")
    if not parts[-1] or "//" in path:
        raise BadInput(f"a credential's path cannot contain a double slash or end with a slash: {_shown(path)}")


def _check_mode(path: str, mode: int) -> None:
    if not 0 <= mode <= 0o777:
        raise BadInput(f"mode {mode:o} of {_shown(path)} is not valid: it must be 0 to 0777")
    if not mode & 0o400:
        raise BadInput(f"mode {mode:04o} of {_shown(path)} does not let the guest's user read it")


def _shown(text: str) -> str:
    return repr(one_line(text, 120))
