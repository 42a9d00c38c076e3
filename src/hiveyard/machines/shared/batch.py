"""Steps with files as words and bytes for the BATCH script, and how many of them one round trip can carry."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from hiveyard.core.files import FileStep, MakeDirectory, Remove, SetMode, WriteFile

_WORDS_LIMIT = 100_000
_DATA_LIMIT = 4 << 20


class Step(NamedTuple):
    """One step. `verb` says it in an error; `words` are for the script, the path being the second of them."""

    verb: str
    path: str
    words: tuple[str, ...]
    data: bytes = b""

    @property
    def size(self) -> int:
        return sum(len(word.encode("utf-8", "surrogateescape")) + 1 for word in self.words)


def step(wanted: FileStep, absolute: str) -> Step:
    """`absolute` is its path as the guest takes it."""
    if isinstance(wanted, WriteFile):
        who = "" if wanted.owner is None else wanted.owner
        who += "" if wanted.group is None else f":{wanted.group}"
        parents, size = "1" if wanted.parents else "", str(len(wanted.data))
        digest = hashlib.sha256(wanted.data).hexdigest()
        words = ("put", absolute, f"{wanted.mode:o}", parents, size, digest, secrets.token_hex(8), who)
        return Step("write", wanted.path, words, wanted.data)
    if isinstance(wanted, MakeDirectory):
        made = ("make", absolute, f"{wanted.mode:o}", "1" if wanted.parents else "")
        return Step("make the directory", wanted.path, _filled(*made))
    if isinstance(wanted, SetMode):
        return Step("change the mode of", wanted.path, _filled("mode", absolute, f"{wanted.mode:o}"))
    assert isinstance(wanted, Remove)
    return Step("remove", wanted.path, _filled("take", absolute))


def _filled(*words: str) -> tuple[str, ...]:
    return (*words, *("",) * (8 - len(words)))


def trips(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """The steps in order, as many together as may travel at once; one that is large goes alone."""
    first = words = data = 0
    for number, one in enumerate(steps):
        words, data = words + one.size, data + len(one.data)
        if number > first and (words > _WORDS_LIMIT or data > _DATA_LIMIT):
            yield steps[first:number]
            first, words, data = number, one.size, len(one.data)
    if steps:
        yield steps[first:]
