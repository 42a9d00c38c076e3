"""A command in a session without a terminal: our stdin, stdout and stderr are its own, and so is its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

from hiveyard.api.duplex import Duplex

_PIECE = 64 << 10


def execute(duplex: Duplex) -> int:
    """Talk with the command until it ends. Its output goes out as it is."""
    duplex.feed_beside(_stdin())
    outputs = {b"o": sys.stdout.buffer, b"e": sys.stderr.buffer}
    while True:
        letter, data = duplex.next()
        if letter == b"x":
            return int(data)
        outputs[letter].write(data)
        outputs[letter].flush()


def _stdin() -> Iterator[bytes]:
    while piece := os.read(sys.stdin.fileno(), _PIECE):
        yield piece
