"""Encode steps with files as arguments and data for the BATCH script, and group them into round trips."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hiveyard.core.files import FileStep, MakeDirectory, Remove, SetMode, WriteFile

_WORDS_LIMIT = 100_000
_DATA_LIMIT = 4 << 20


class Step(NamedTuple):
    """One step. `verb` describes it in an error. `words` are the script's arguments; the second is the path."""

    verb: str
    path: str
    words: tuple[str, ...]
    data: bytes = b""

    @property
    def size(self) -> int:
        return sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in self.words)


def encode(step: FileStep, absolute: str) -> Step:
    """Encode a step. `absolute` is its path in the guest."""
    if isinstance(step, WriteFile):
        owner = "" if step.owner is None else step.owner
        owner += "" if step.group is None else f":{step.group}"
        parents, size = "1" if step.parents else "", str(len(step.data))
        digest = hashlib.sha256(step.data).hexdigest()
        words = ("put", absolute, f"{step.mode:o}", parents, size, digest, secrets.token_hex(8), owner)
        return Step("write", step.path, words, step.data)
    if isinstance(step, MakeDirectory):
        made = ("make", absolute, f"{step.mode:o}", "1" if step.parents else "")
        return Step("make the directory", step.path, _padded(*made))
    if isinstance(step, SetMode):
        return Step("change the mode of", step.path, _padded("mode", absolute, f"{step.mode:o}"))
    assert isinstance(step, Remove)
    return Step("remove", step.path, _padded("take", absolute))


def _padded(*words: str) -> tuple[str, ...]:
    return (*words, *("",) * (8 - len(words)))


def round_trips(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Group the steps in order, as many as fit into one round trip. A large step has one of its own."""
    first = words = data = 0
    for number, one in enumerate(steps):
        words, data = words + one.size, data + len(one.data)
        if number > first and (words > _WORDS_LIMIT or data > _DATA_LIMIT):
            yield steps[first:number]
            first, words, data = number, one.size, len(one.data)
    if steps:
        yield steps[first:]
