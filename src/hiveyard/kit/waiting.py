"""Wait in a thread for work in another thread, so that Ctrl-C always works.

The system delivers a signal to any thread that accepts it. Python only notes it there, and its main thread runs the
handler. A main thread that sleeps on a lock, as in `Future.result`, is not woken by that. The wakeup descriptor wakes
it."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_DONE = b"\0"  # not the number of any signal


def result(future: Future[T]) -> T:
    """Return the result of `future`. Raises what the work raised, and in the main thread what a signal handler
    raises."""
    if threading.current_thread() is threading.main_thread():
        _sleep_until(future)
    return future.result()


def _sleep_until(future: Future[T]) -> None:
    receiver, sender = _ends(os.getpid())
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    try:
        future.add_done_callback(lambda _: _wake(sender))
        while not future.done():
            _pass_on(receiver.recv(64).replace(_DONE, b""), before)
    finally:
        signal.set_wakeup_fd(before)


@functools.cache
def _ends(process: int) -> tuple[socket.socket, socket.socket]:
    """Return a socket pair that is never closed.

    A signal may arrive while a socket is being removed, and its number must not belong to another file by then."""
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    return receiver, sender


def _wake(sender: socket.socket) -> None:
    # Full: a wakeup is already pending.
    with contextlib.suppress(BlockingIOError):
        sender.send(_DONE)


def _pass_on(signals: bytes, before: int) -> None:
    """Pass signals to the previous owner of the descriptor: this thread's event loop, which is blocked and reads it
    later."""
    if signals and before != -1:
        with contextlib.suppress(BlockingIOError):
            os.write(before, signals)
