"""Everything a test can see of what was said, searched for secrets: raw, base64 and URL-encoded."""

from __future__ import annotations

import base64
import logging
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from urllib.parse import quote

from hiveyard.core.errors import HiveyardError


class Said(logging.Handler):
    """All log lines of all loggers at any level, and whatever else is added."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.__dict__}")

    def add(self, line: str) -> None:
        self.lines.append(line)

    def add_error(self, error: BaseException) -> None:
        """An error with its hint, its context, and all errors it holds on to."""
        self.lines += traceback.format_exception(error)
        seen: BaseException | None = error
        while seen is not None:
            self.lines.append(f"{seen!r} {seen.args}")
            if isinstance(seen, HiveyardError):
                self.lines.append(f"{seen.message} {seen.hint} {seen.context}")
            seen = seen.__cause__ or seen.__context__

    def none_of(self, secrets: Iterable[str]) -> None:
        said = "\n".join(self.lines)
        for secret in secrets:
            for form in forms(secret):
                assert form not in said, "a secret was said"


@contextmanager
def listening() -> Iterator[Said]:
    """Hear all that is logged for as long as the block lasts."""
    said, root = Said(), logging.getLogger()
    level = root.level
    root.addHandler(said)
    root.setLevel(logging.DEBUG)
    try:
        yield said
    finally:
        root.removeHandler(said)
        root.setLevel(level)


def forms(secret: str) -> set[str]:
    """Raw, URL-encoded, and base64 at each of the three places where it may begin, without the edges that depend on
    what stands beside it."""
    found = {secret, quote(secret), quote(secret, safe="")}
    for lead in range(3):
        padded = bytes(lead) + secret.encode()
        first, last = -(-lead * 8 // 6), len(padded) * 8 // 6
        found |= {encode(padded).decode()[first:last] for encode in (base64.b64encode, base64.urlsafe_b64encode)}
    return found
