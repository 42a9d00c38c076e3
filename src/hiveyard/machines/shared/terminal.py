"""Join a terminal of this host to one in a machine: relay input, output and changes of the size.

It runs in the user's own process, so it needs only the standard library. It knows no machine: the other end is a
descriptor to read and write, and a function that sets the size.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from typing import NamedTuple

_PIECE = 64 << 10
_BUFFER_LIMIT = 256 << 10
_WATCHED = (signal.SIGWINCH, signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)


class Size(NamedTuple):
    """The size of a terminal in characters."""

    rows: int
    columns: int


class HungUp(Exception):
    """The user's terminal was closed, or this process received SIGTERM or SIGHUP."""


def size_of(fd: int) -> Size:
    """Return the size of a terminal, 24 rows and 80 columns if it is unknown."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    return Size(rows or 24, columns or 80)


def set_size(fd: int, size: Size) -> None:
    """Set the size of a terminal."""
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Put a terminal into raw mode for the block: its reader receives every key."""
    before = termios.tcgetattr(fd)
    # Not FLUSH, here and below: the next reader receives what was typed ahead.
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        # The terminal may have been closed.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def join(far: int, resize: Callable[[Size], None], over: Callable[[], bool] = lambda: False) -> None:
    """Relay between the terminal on stdin and stdout and the descriptor `far`, until the end of `far`.

    `over` is called when a child of this process has ended, and returns whether the other end has no user any more.
    Raises HungUp.
    """
    read, write = os.pipe()
    for fd in (read, write, far):
        os.set_blocking(fd, False)
    before = {number: signal.signal(number, _ignore_but_wake) for number in _WATCHED}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        with raw(0):
            resize(size_of(0))
            _Relay(far, read, resize, over).run()
    except HungUp:
        # The end of the terminal may be read before its signal arrives: the signal must not stop the cleanup.
        before |= dict.fromkeys((signal.SIGHUP, signal.SIGTERM), signal.SIG_IGN)
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _ignore_but_wake(number: int, frame: object) -> None:
    """Do nothing: the signal is handled when its number is read from the wakeup descriptor."""


class _Relay:
    """Both directions, each with the bytes that were read and not yet written."""

    def __init__(self, far: int, signals: int, resize: Callable[[Size], None], over: Callable[[], bool]) -> None:
        self._far = far
        self._signals = signals
        self._resize = resize
        self._over = over
        self._keys = bytearray()
        self._output = bytearray()
        self._ended = False

    def run(self) -> None:
        while not self._ended or self._output:
            ready = self._wait()
            if self._signals in ready:
                self._handle_signals(os.read(self._signals, 4096))
            if 0 in ready:
                self._read_keys()
            if self._far in ready:
                self._serve_far(ready[self._far])
            if 1 in ready:
                self._write_screen()

    def _wait(self) -> dict[int, int]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            if not self._ended:
                far = selectors.EVENT_READ if len(self._output) < _BUFFER_LIMIT else 0
                far |= selectors.EVENT_WRITE if self._keys else 0
                if far:
                    selector.register(self._far, far)
                if len(self._keys) < _BUFFER_LIMIT:
                    selector.register(0, selectors.EVENT_READ)
            if self._output:
                selector.register(1, selectors.EVENT_WRITE)
            return {key.fd: events for key, events in selector.select()}

    def _handle_signals(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers or signal.SIGHUP in numbers:
            raise HungUp
        if signal.SIGWINCH in numbers:
            self._resize(size_of(0))
        if signal.SIGCHLD in numbers and self._over():
            while not self._ended and self._read_far():
                pass
            self._ended = True

    def _read_keys(self) -> None:
        typed = b""
        with contextlib.suppress(OSError):
            typed = os.read(0, _PIECE)
        if not typed:
            raise HungUp
        self._keys += typed

    def _write_screen(self) -> None:
        try:
            del self._output[: os.write(1, self._output[:_PIECE])]
        except BlockingIOError:
            pass
        except OSError as error:
            raise HungUp from error

    def _serve_far(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._read_far()
        if events & selectors.EVENT_WRITE and self._keys and not self._ended:
            try:
                del self._keys[: os.write(self._far, self._keys[:_PIECE])]
            except BlockingIOError:
                pass
            except OSError:
                self._keys.clear()  # it reads no more; its output is still shown

    def _read_far(self) -> bool:
        """Read from the other end, and return whether there was anything."""
        try:
            piece = os.read(self._far, _PIECE)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""  # EIO: no process has the other end of the terminal open any more
        self._output += piece
        self._ended = self._ended or not piece
        return bool(piece)
