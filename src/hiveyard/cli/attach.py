"""`hv attach`, and the use of this terminal by a program that leads into a machine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence

import click

from hiveyard.api.client import quoted
from hiveyard.cli.connect import connect
from hiveyard.cli.names import ONLY_SESSION
from hiveyard.cli.work import only_candidate
from hiveyard.core.errors import BadInput

# Resets the modes that a full-screen program may have left set when it was killed: the alternate screen, mouse, focus
# and paste reports, a hidden cursor, cursor and keypad keys, extended key reports, colors, line-drawing characters.
_RESET = (
    "\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l\x1b[?25h\x1b[?1l\x1b>\x1b[>4m\x1b[<u"
    "\x1b[0m\x1b(B\r\n"
)
_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP)


@click.command(short_help="Attach this terminal to a session's agent.")
@ONLY_SESSION
@click.option("--read-only", is_flag=True, help="Only watch.")
def attach(session: str | None, read_only: bool) -> int:
    """Attach this terminal to the agent's own terminal program; of a live session, show the transcript and send the
    lines that you type. Ctrl-B D detaches, and the agent keeps running. Several users may attach at once. Without
    SESSION, attach to the only one that runs."""
    name = only_candidate("attach", sessions_only=True) if session is None else session
    return attach_to(name, read_only=read_only)


def attach_to(session: str, *, read_only: bool = False) -> int:
    """Attach this terminal to a session's agent, and return the exit code when the user has detached."""
    found = connect().call("GET", f"/v1/sessions/{quoted(session)}")
    if found["mode"] == "live":
        from hiveyard.cli.live_attach import attach_live

        return attach_live(found, read_only=read_only)
    path = f"/v1/sessions/{quoted(session)}/terminal"
    return run_on_terminal(connect().call("POST", path, {"read_only": read_only, **own_terminal()})["argv"])


def run_on_terminal(argv: Sequence[str]) -> int:
    """Run a program on this terminal and return its exit code. The program comes from `Terminals.terminal`. Afterwards
    the terminal has its old settings, even if the machine ended or the program was killed. Raises BadInput if stdin or
    stdout is not a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("stdin and stdout must be a terminal", hint="hv exec ID -- COMMAND")
    sys.stdout.flush()
    with _restored(sys.stdin.fileno()):
        status = _run(argv)
    if status > 128:  # a signal ended the program, or the connection of ssh broke (255)
        sys.stdout.write(_RESET)
        sys.stdout.flush()
    return status


def _run(argv: Sequence[str]) -> int:
    """Run the program, ignore the signals of keys, which reach the program by themselves, and forward SIGTERM and
    SIGHUP: a terminal that closes signals only its session's leader, which may be this process."""
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: object) -> None:
        if child is not None and number in (signal.SIGTERM, signal.SIGHUP):
            child.send_signal(number)

    before = {number: signal.signal(number, forward) for number in _SIGNALS}
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
        # A terminal that has closed cannot be restored, and need not be.
        with contextlib.suppress(termios.error), _ignoring_sigttou():
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _ignoring_sigttou() -> Iterator[None]:
    """Ignore SIGTTOU, which would stop this process when it sets the terminal from the background."""
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTTOU, before)


def own_terminal() -> dict[str, str]:
    """Return the facts about this terminal that the daemon needs: `term` and `colors`."""
    return {"term": os.environ.get("TERM", ""), "colors": os.environ.get("COLORTERM", "")}
