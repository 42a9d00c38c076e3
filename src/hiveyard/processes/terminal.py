"""Return guest commands for a user's terminal.

The guest gets the type (TERM) and the colors (COLORTERM) of that terminal. If it does not know the type, it uses the
most similar one."""

from __future__ import annotations

from collections.abc import Sequence

from hiveyard.core.commands import Command
from hiveyard.processes import scripts


def attaching(name: str, *, read_only: bool = False, term: str = "", colors: str = "") -> Command:
    """Return the command that attaches to the window of process `name` of Tmux. It exits with 0 when the user detaches
    (Ctrl-B D) or the process ends. With `read_only`, keys and the size of the user's window have no effect."""
    words = ("bash", "-c", scripts.ATTACH, "hv", name, "1" if read_only else "")
    return Command(argv=words, cwd="/", env=_env(term, colors))


def shown(argv: Sequence[str], *, cwd: str = "~", term: str = "", colors: str = "") -> Command:
    """Return the command that runs a program in the terminal."""
    return Command(argv=("bash", "-c", scripts.SHOWN, "hv", *argv), cwd=cwd, env=_env(term, colors))


def _env(term: str, colors: str) -> dict[str, str]:
    return {"TERM": term or "xterm-256color", "COLORTERM": colors}
