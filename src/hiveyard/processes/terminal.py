"""Commands of the guest for a person's terminal, whose kind (TERM) and colours (COLORTERM) are the person's own: a kind
that the guest does not know is taken for the nearest that it does."""

from __future__ import annotations

from collections.abc import Sequence

from hiveyard.core.commands import Command
from hiveyard.processes import scripts


def attaching(name: str, *, read_only: bool = False, term: str = "", colors: str = "") -> Command:
    """The command that shows the window of process `name` of Tmux; it ends with 0 when the person leaves (Ctrl-B D) or
    the process ends. A reader's keys reach nothing, and their window's size counts for nothing."""
    words = ("bash", "-c", scripts.ATTACH, "hv", name, "1" if read_only else "")
    return Command(argv=words, cwd="/", env=_env(term, colors))


def shown(argv: Sequence[str], *, cwd: str = "~", term: str = "", colors: str = "") -> Command:
    """Any program."""
    return Command(argv=("bash", "-c", scripts.SHOWN, "hv", *argv), cwd=cwd, env=_env(term, colors))


def _env(term: str, colors: str) -> dict[str, str]:
    return {"TERM": term or "xterm-256color", "COLORTERM": colors}
