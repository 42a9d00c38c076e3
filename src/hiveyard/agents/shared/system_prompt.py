"""What a turn adds to its agent's own system prompt: in a file of the guest, which is written before the program
starts, or in a word of the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Turn

LIMIT = 60_000
"""Bytes: with each of them quoted it still fits into one word of a command line, which is 128 KiB."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
# $1 is the file, $2 the text; the rest is the command.
_WRITE = r"""
mkdir -p -- "${1%/*}" && printf '%s\n' "$2" >"$1" || exit 70
shift 2
exec "$@"
"""


def added(turn: Turn) -> str:
    """The text, "" for none. Raises BadInput for what no program could be given."""
    text = turn.system or ""
    if _UNPRINTABLE.search(text):
        raise BadInput("the text for the system prompt has control characters, or halves of characters")
    if (size := len(text.encode())) > LIMIT:
        raise BadInput(
            f"the text for the system prompt has {size} bytes: at most {LIMIT} go there",
            hint="the rest into the prompt, or a file of the work tree",
        )
    return text


def writing(turn: Turn, path: str, argv: Sequence[str]) -> tuple[str, ...]:
    """The command, which finds the text at `path`; as it is for a turn that has none."""
    text = added(turn)
    return ("sh", "-c", _WRITE, "hiveyard-system-prompt", path, text, *argv) if text else tuple(argv)
