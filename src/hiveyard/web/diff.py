"""Parse a unified diff into files and lines that the page can show, in one column or in two."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple

from hiveyard.kit.text import printable

LINES = 6000
"""Most lines of a diff that the page shows; more would make a browser slow."""
COLUMNS = 1000
_HUNK = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@(.*)")


class Line(NamedTuple):
    """A line of a hunk: `kind` is add, del, same, or hunk for its heading."""

    kind: str
    old: int | None
    new: int | None
    text: str


class File(NamedTuple):
    """A changed file. `note` says what is not text: a new mode, a rename, a binary file."""

    path: str
    note: str
    lines: list[Line]

    @property
    def added(self) -> int:
        return sum(line.kind == "add" for line in self.lines)

    @property
    def removed(self) -> int:
        return sum(line.kind == "del" for line in self.lines)


class Diff(NamedTuple):
    """A diff; `cut` is the number of lines that are not shown."""

    files: list[File]
    cut: int


def parse(text: str, path: str = "") -> Diff:
    """Parse the output of `git diff`, or the diff of one file whose `path` is known."""
    lines = text.split("\n")
    files = [_file(part, path) for part in _by_file(lines[:LINES])]
    return Diff([file for file in files if file.lines or file.note or file.path], max(0, len(lines) - LINES))


def pairs(file: File) -> Iterator[tuple[Line | None, Line | None]]:
    """Yield the lines of a file side by side: removed ones on the left, what replaced them on the right."""
    for changed, group in itertools.groupby(file.lines, key=lambda line: line.kind in ("add", "del")):
        if not changed:
            yield from ((line, line) for line in group)
            continue
        block = list(group)
        old = [line for line in block if line.kind == "del"]
        new = [line for line in block if line.kind == "add"]
        yield from itertools.zip_longest(old, new)


def _by_file(lines: list[str]) -> Iterator[list[str]]:
    part: list[str] = []
    for line in lines:
        if line.startswith("diff --git ") and part:
            yield part
            part = []
        part.append(line)
    yield part


def _file(lines: list[str], path: str) -> File:
    found: list[Line] = []
    notes: list[str] = []
    old = new = 0
    in_hunk = False
    for raw in lines:
        line = printable(raw[:COLUMNS])
        if match := _HUNK.match(line):
            old, new, in_hunk = int(match[1]), int(match[2]), True
            found.append(Line("hunk", None, None, line))
        elif not in_hunk:
            path, note = _heading(line, path)
            notes += [note] if note else []
        elif line.startswith("+"):
            found.append(Line("add", None, new, line[1:]))
            new += 1
        elif line.startswith("-"):
            found.append(Line("del", old, None, line[1:]))
            old += 1
        elif line.startswith(" "):
            found.append(Line("same", old, new, line[1:]))
            old, new = old + 1, new + 1
    return File(path, ", ".join(notes), found)


def _heading(line: str, path: str) -> tuple[str, str]:
    """Return the path as known after a line above the hunks, and what the line says besides."""
    if line.startswith("diff --git "):
        return line.rpartition(" b/")[2].removesuffix('"'), ""
    if line.startswith("+++ ") and not line.startswith("+++ /dev/null"):
        return re.sub(r'^"?b/', "", line[4:]).rstrip('"\t'), ""
    said = line.startswith(("new file", "deleted file", "rename from", "old mode", "Binary files", "GIT binary"))
    return path, line if said and not line.startswith("Binary") else ("binary" if said else "")
