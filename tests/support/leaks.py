"""Everything a test can see of what was said, searched for secrets: raw, base64, URL-encoded and as hex digits.

All secrets of the tests have the mark in them, those too that a fake makes up; so whoever searches need not know them.
"""

from __future__ import annotations

import base64
import logging
import os
import stat
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from hiveyard.core.errors import HiveyardError
from hiveyard.engine.archive.sparse import Extent, data_extents

MARK = "Zq8TestSecret"
"""In all secrets of the tests. Of letters and digits: URLs, JSON and shells write them as they are."""


class Said(logging.Handler):
    """All log lines of all loggers at any level, and whatever else is added."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logged(record))

    def add(self, line: str) -> None:
        self.lines.append(line)

    def add_error(self, error: BaseException) -> None:
        """An error with its hint, its context, and all errors it holds on to."""
        self.lines += [*traceback.format_exception(error), told(error)]

    def none_of(self, secrets: Iterable[str]) -> None:
        said = "\n".join(self.lines)
        for secret in secrets:
            for form in forms(secret):
                assert form not in said, "a secret was said"


@contextmanager
def listening() -> Iterator[Said]:
    """Hear all that is logged for as long as the block lasts."""
    said = Said()
    with heard_by(said):
        yield said


@contextmanager
def heard_by(handler: logging.Handler) -> Iterator[None]:
    """A handler hears all that is logged for as long as the block lasts."""
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


@contextmanager
def searched_directory(prefix: str = "hv-", dir: str | None = None) -> Iterator[Path]:
    """A temporary directory in which the state of Hiveyard is searched for secrets before it goes."""
    with tempfile.TemporaryDirectory(prefix=prefix, dir=dir) as path:
        yield Path(path)
        found = marked_files(Path(path))
        assert not found, f"a secret was written down: {found}"


def logged(record: logging.LogRecord) -> str:
    """All that a log record says."""
    trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
    return f"{record.getMessage()} {record.__dict__} {trace}"


def told(error: BaseException) -> str:
    """All that an error says, with its hint, its context, and the errors it holds on to."""
    lines: list[str] = []
    met: list[BaseException] = []  # an error in a group may hold on to the group
    left: list[BaseException | None] = [error]
    while left:
        seen = left.pop()
        if seen is None or any(seen is one for one in met):
            continue
        met.append(seen)
        lines.append(f"{seen!r} {seen.args}")
        if isinstance(seen, HiveyardError):
            lines.append(f"{seen.message} {seen.hint} {seen.context}")
        left += [seen.__cause__, seen.__context__, *getattr(seen, "exceptions", ())]
    return "\n".join(lines)


def forms(secret: str) -> set[str]:
    """Raw, URL-encoded, as hex digits, and base64 at each of the three places where it may begin, without the edges
    that depend on what stands beside it."""
    found = {secret, quote(secret), quote(secret, safe=""), secret.encode().hex()}
    for lead in range(3):
        padded = bytes(lead) + secret.encode()
        first, last = -(-lead * 8 // 6), len(padded) * 8 // 6
        found |= {encode(padded).decode()[first:last] for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    return found


_MARKS = sorted(forms(MARK))
_MARKS_AS_BYTES = [form.encode() for form in _MARKS]
_LONGEST = max(map(len, _MARKS_AS_BYTES))
_PIECE = 1 << 20


def has_mark(said: str) -> bool:
    """Whether a secret of the tests stands in a text."""
    return any(form in said for form in _MARKS)


# Disks, memories and root filesystems of machines, what git packs, and bytes that say nothing.
_NO_WORDS = (".qcow2", ".img", ".raw", ".tar", ".zst", ".pack", "ballast")
# Where a secret lies because its owner put it there: the file for keys, sign-ins, git's own, values of a session.
_LAWFUL = {"keys.toml", "values.json", "mine.json", "tokens.json", "credentials"}


def marked_files(directory: Path) -> list[str]:
    """Files below a directory, journals, logs and results among them, in which a secret of the tests stands; but its
    lawful places, and what a machine has of its own: a profile may have been asked to put one there."""
    found = []
    for place, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if not _of_a_guest(name, names)]
        for name in names:
            path = Path(place, name)
            if name not in _LAWFUL and not name.endswith(_NO_WORDS) and _file_has_mark(path):
                found.append(str(path))
    return found


_PAGE = 4096


def _of_a_guest(name: str, beside: list[str]) -> bool:
    return name == "home" and "machine.json" in beside


def _file_has_mark(path: Path) -> bool:
    with suppress(OSError):  # what is at work comes and goes
        facts = path.lstat()
        hole = facts.st_blocks == 0 and facts.st_size > _PAGE  # a small file may lie in its inode
        if stat.S_ISREG(facts.st_mode) and facts.st_size and not hole:
            with path.open("rb") as file:
                places = data_extents(file.fileno(), facts.st_size) or [Extent(0, facts.st_size)]  # not in holes
                return any(_part_has_mark(file, *place) for place in places)
    return False


def _part_has_mark(file: BinaryIO, at: int, size: int) -> bool:
    """Read, not mapped: a file at work may be cut, and a page that is gone would kill the tests."""
    file.seek(at)
    known = b""
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        size -= len(piece)
        known += piece
        if any(form in known for form in _MARKS_AS_BYTES):
            return True
        known = known[-_LONGEST:]
    return False
