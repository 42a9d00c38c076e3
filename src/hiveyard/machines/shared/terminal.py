"""A terminal of this host joined to one in a machine: keys go in, what is shown comes out, the size follows.

It runs in the person's own process, so it is made of the standard library alone, and knows no machine: the other end
is a descriptor to read and write, and a function that is told the size.
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
_HELD = 256 << 10
_WATCHED = (signal.SIGWINCH, signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP)


class Size(NamedTuple):
    """Of a terminal, in characters."""

    rows: int
    columns: int


class HungUp(Exception):
    """The person's terminal went away, or this process was asked to end."""


def size_of(fd: int) -> Size:
    """The size of a terminal; one that does not tell has the usual."""
    rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
    return Size(rows or 24, columns or 80)


def set_size(fd: int, size: Size) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", size.rows, size.columns, 0, 0))


@contextlib.contextmanager
def raw(fd: int) -> Iterator[None]:
    """Every key goes to whoever reads the terminal, for as long as the block lasts."""
    before = termios.tcgetattr(fd)
    # Not FLUSH, here and below: what was typed ahead is for whoever reads next.
    tty.setraw(fd, termios.TCSADRAIN)
    try:
        yield
    finally:
        # A terminal that is gone needs nothing.
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)


def join(far: int, resize: Callable[[Size], None], over: Callable[[], bool] = lambda: False) -> None:
    """Carry between the terminal on stdin and stdout and the descriptor `far`, until that comes to its end.

    `over`, asked when a child of this process has ended, tells that nobody is at the other end any more. Raises HungUp.
    """
    read, write = os.pipe()
    for fd in (read, write, far):
        os.set_blocking(fd, False)
    before = {number: signal.signal(number, _ignore_but_wake) for number in _WATCHED}
    wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    try:
        with raw(0):
            resize(size_of(0))
            _Joint(far, read, resize, over).run()
    except HungUp:
        # The terminal's end may be read off it before its signal comes: that must not end what there is to do now.
        before |= dict.fromkeys((signal.SIGHUP, signal.SIGTERM), signal.SIG_IGN)
        raise
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def _ignore_but_wake(number: int, frame: object) -> None:
    """What the wakeup descriptor tells is what counts."""


class _Joint:
    """Two directions, each with what it has read and not yet written."""

    def __init__(self, far: int, signals: int, resize: Callable[[Size], None], over: Callable[[], bool]) -> None:
        self._far = far
        self._signals = signals
        self._resize = resize
        self._over = over
        self._keys = bytearray()
        self._shown = bytearray()
        self._ended = False

    def run(self) -> None:
        while not self._ended or self._shown:
            ready = self._wait()
            if self._signals in ready:
                self._heed(os.read(self._signals, 4096))
            if 0 in ready:
                self._listen()
            if self._far in ready:
                self._look(ready[self._far])
            if 1 in ready:
                self._show()

    def _wait(self) -> dict[int, int]:
        with selectors.DefaultSelector() as selector:
            selector.register(self._signals, selectors.EVENT_READ)
            if not self._ended:
                far = selectors.EVENT_READ if len(self._shown) < _HELD else 0
                far |= selectors.EVENT_WRITE if self._keys else 0
                if far:
                    selector.register(self._far, far)
                if len(self._keys) < _HELD:
                    selector.register(0, selectors.EVENT_READ)
            if self._shown:
                selector.register(1, selectors.EVENT_WRITE)
            return {key.fd: events for key, events in selector.select()}

    def _heed(self, numbers: bytes) -> None:
        if signal.SIGTERM in numbers or signal.SIGHUP in numbers:
            raise HungUp
        if signal.SIGWINCH in numbers:
            self._resize(size_of(0))
        if signal.SIGCHLD in numbers and self._over():
            while not self._ended and self._read_far():
                pass
            self._ended = True

    def _listen(self) -> None:
        typed = b""
        with contextlib.suppress(OSError):
            typed = os.read(0, _PIECE)
        if not typed:
            raise HungUp
        self._keys += typed

    def _show(self) -> None:
        try:
            del self._shown[: os.write(1, self._shown[:_PIECE])]
        except BlockingIOError:
            pass
        except OSError as error:
            raise HungUp from error

    def _look(self, events: int) -> None:
        if events & selectors.EVENT_READ:
            self._read_far()
        if events & selectors.EVENT_WRITE and self._keys and not self._ended:
            try:
                del self._keys[: os.write(self._far, self._keys[:_PIECE])]
            except BlockingIOError:
                pass
            except OSError:
                self._keys.clear()  # it reads no more; what it still says is shown

    def _read_far(self) -> bool:
        """Whether there was something."""
        try:
            piece = os.read(self._far, _PIECE)
        except BlockingIOError:
            return False
        except OSError:
            piece = b""  # EIO: nobody has the other end of a terminal open any more
        self._shown += piece
        self._ended = self._ended or not piece
        return bool(piece)
