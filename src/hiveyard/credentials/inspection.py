"""Inspect paths of a guest in one round trip, without following symlinks, and remove empty directories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from hiveyard.core.commands import Command
from hiveyard.core.credentials import LARGEST_FILE
from hiveyard.core.errors import CredentialsNotInstalled
from hiveyard.core.ports import Guest
from hiveyard.kit.text import decode, one_line

# PATH... -> the user's id, then a line for each path: the letter of its kind with mode and owner, or `-` for nothing.
_LOOK = r"""
export LC_ALL=C
printf '%d\n' $EUID
for p; do
  [[ $p == "~/"* ]] && p=$HOME/${p#"~/"}
  if [[ -L $p ]]; then printf 'l 0 0\n'
  elif [[ -d $p ]]; then stat -c 'd %a %u' -- "$p"
  elif [[ -f $p ]]; then stat -c 'f %a %u' -- "$p"
  elif [[ -e $p ]]; then printf 'o 0 0\n'
  else printf -- '- 0 0\n'
  fi
done
"""
# PATH... -> for each path a line with its size, then its bytes
_CONTENTS = r"""
export LC_ALL=C
for p; do
  [[ $p == "~/"* ]] && p=$HOME/${p#"~/"}
  n=$(stat -c %s -- "$p") && printf '%d\n' "$n" && head -c "$n" -- "$p" || exit 1
done
"""
# PATH
_RMDIR = r'[[ $1 == "~/"* ]] && set -- "$HOME/${1#"~/"}"; [[ ! -e $1 ]] || rmdir --ignore-fail-on-non-empty -- "$1"'
_KINDS = {"-": "nothing", "d": "a directory", "f": "a file", "l": "a symlink", "o": "neither a file nor a directory"}
_LINE_LIMIT = 64


class PathState(NamedTuple):
    """The state of a path. `kind` is one of the letters d (directory), f (regular file), l (symlink), o (something
    else), - (nothing)."""

    kind: str
    mode: int
    own: bool

    @property
    def words(self) -> str:
        return _KINDS[self.kind]


async def look(guest: Guest, paths: Sequence[str]) -> list[PathState]:
    """Return the state of each path. Raises CredentialsNotInstalled if the guest does not report it, and as
    `Guest.run`."""
    command = Command(argv=("bash", "-c", _LOOK, "hv", *paths))
    result = await guest.run(command, timeout=60, limit=_LINE_LIMIT * (len(paths) + 1))
    user, *lines = decode(result.stdout).splitlines() or [""]
    if result.ok and len(lines) == len(paths) and _is_number(user):
        seen = [_parse(line, int(user)) for line in lines]
        if all(one is not None for one in seen):
            return [one for one in seen if one is not None]
    output = one_line(decode(result.stderr or result.stdout))
    raise CredentialsNotInstalled(f"the guest does not report its files: exit code {result.status}: {output}")


def _is_number(word: str) -> bool:
    """Whether this is a number that stat can print: only ASCII digits, and not too many."""
    return word.isascii() and word.isdigit() and len(word) < 20


def _parse(line: str, user: int) -> PathState | None:
    words = line.split(" ")
    if len(words) != 3 or words[0] not in _KINDS or not (_is_number(words[1]) and _is_number(words[2])):
        return None
    try:
        mode = int(words[1], 8)
    except ValueError:
        return None
    return PathState(words[0], mode, int(words[2]) == user)


async def contents(guest: Guest, paths: Sequence[str]) -> list[bytes]:
    """Return the contents of regular files, read in one round trip. Raises CredentialsNotInstalled if the guest does
    not return one or if it exceeds LARGEST_FILE, and as `Guest.run`."""
    if not paths:
        return []
    command = Command(argv=("bash", "-c", _CONTENTS, "hv", *paths))
    result = await guest.run(command, timeout=60, limit=(LARGEST_FILE + _LINE_LIMIT) * len(paths))
    found, at = [], 0
    for path in paths:
        end = result.stdout.find(b"\n", at, at + _LINE_LIMIT)
        number = decode(result.stdout[at:end]) if end > at else ""
        size = int(number) if _is_number(number) else -1
        if size > LARGEST_FILE:
            raise CredentialsNotInstalled(f"{path} has {size} bytes; the limit is {LARGEST_FILE}", path=path)
        at = end + 1 + size
        if size < 0 or at > len(result.stdout):
            reason = one_line(decode(result.stderr)) or f"exit code {result.status}"
            raise CredentialsNotInstalled(f"{path} cannot be read: {reason}", path=path)
        found.append(result.stdout[end + 1 : at])
    return found


async def remove_empty(guest: Guest, path: str) -> None:
    """Remove a directory if it is empty. Raises CredentialsNotInstalled."""
    result = await guest.run(Command(argv=("bash", "-c", _RMDIR, "hv", path)), timeout=60)
    if not result.ok:
        raise CredentialsNotInstalled(f"{path}: {one_line(decode(result.stderr))}", path=path)
