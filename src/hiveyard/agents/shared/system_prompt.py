"""Additional text for an agent's own system prompt.

It is passed in a file of the guest, written before the program starts, or in a word of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Turn

LIMIT = 60_000
"""In bytes. Even if each byte is quoted, it fits into one word of a command line, which is at most 128 KiB."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
# $1 is the file, $2 the text; the rest is the command.
_WRITE = r"""
mkdir -p -- "${1%/*}" && printf '%s\n' "$2" >"$1" || exit 70
shift 2
exec "$@"
"""


def system_text(turn: Turn) -> str:
    """Return the text, or "". Raises BadInput for a text that no program accepts."""
    text = turn.system or ""
    if _UNPRINTABLE.search(text):
        raise BadInput("the text for the system prompt has control characters or unpaired surrogates")
    if (size := len(text.encode())) > LIMIT:
        raise BadInput(
            f"the text for the system prompt has {size} bytes, the maximum is {LIMIT}",
            hint="move a part into the prompt or a file of the work tree",
        )
    return text


def with_file(turn: Turn, path: str, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the command, preceded by writing the text to `path`; the command alone if there is no text."""
    text = system_text(turn)
    return ("sh", "-c", _WRITE, "hiveyard-system-prompt", path, text, *argv) if text else tuple(argv)
