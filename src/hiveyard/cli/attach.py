"""A person's terminal given to a program that leads into a machine, and taken back whatever happens there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence

from hiveyard.core.errors import BadInput

# What a full-screen program may have set and, cut off, could not take back: its own screen, mouse, focus and paste
# reports, a hidden cursor, cursor and keypad keys, reports of more keys, colours, line-drawing characters.
_UNDO = (
    "\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[?25h\x1b[?1l\x1b>\x1b[>4m\x1b[<u"
    "\x1b[0m\x1b(B\r\n"
)
_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP)


def sit_down(argv: Sequence[str]) -> int:
    """Run a program of Terminals on this terminal and return its exit code. The terminal is as before afterwards, also
    when the machine died or the program was killed. Raises BadInput where there is no terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("this needs a terminal, and its input or its output is none", hint="hv exec ID -- COMMAND")
    sys.stdout.flush()
    with _restored(sys.stdin.fileno()):
        status = _run(argv)
    if status > 128:  # a signal ended what was there, or the connection of ssh broke (255)
        sys.stdout.write(_UNDO)
        sys.stdout.flush()
    return status


def _run(argv: Sequence[str]) -> int:
    """Keys that are signals reach the program by themselves; it decides what they mean. That the terminal went away
    is told to whoever leads its session, which may be us."""
    child: subprocess.Popen[bytes] | None = None

    def passed(number: int, frame: object) -> None:
        if child is not None and number in (signal.SIGTERM, signal.SIGHUP):
            child.send_signal(number)

    before = {number: signal.signal(number, passed) for number in _SIGNALS}
    try:
        child = subprocess.Popen(argv)
        status = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 128 - status if status < 0 else status


@contextlib.contextmanager
def _restored(fd: int) -> Iterator[None]:
    before = termios.tcgetattr(fd)
    try:
        yield
    finally:
        # A terminal that is gone needs nothing.
        with contextlib.suppress(termios.error), _undisturbed():
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Setting a terminal from the background would stop us."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)


def own_terminal() -> dict[str, str]:
    """Return the facts about this terminal that the daemon needs: `term` and `colors`."""
    return {"term": os.environ.get("TERM", ""), "colors": os.environ.get("COLORTERM", "")}
