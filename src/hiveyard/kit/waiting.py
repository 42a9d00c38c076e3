"""Waiting in a thread for work that is done in another, so that Ctrl-C is always heard.

The system hands a signal to any thread that looks for one; Python only notes it there, for its main thread to act on. A
main thread asleep on a lock, as in `Future.result`, is not woken by that. It is by the wakeup descriptor.
"""

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

_DONE = b"\0"  # no signal has this number


def result(future: Future[T]) -> T:
    """What `future` comes to. Raises what the work raised, and in the main thread what a signal's handler raises."""
    if threading.current_thread() is threading.main_thread():
        _sleep_until(future)
    return future.result()


def _sleep_until(future: Future[T]) -> None:
    hearing, waking = _ends(os.getpid())
    before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    try:
        future.add_done_callback(lambda _: _wake(waking))
        while not future.done():
            _pass_on(hearing.recv(64).replace(_DONE, b""), before)
    finally:
        signal.set_wakeup_fd(before)


@functools.cache
def _ends(process: int) -> tuple[socket.socket, socket.socket]:
    """Never closed: a signal may come while one is taken away, and its number must not be somebody else's by then."""
    hearing, waking = socket.socketpair()
    waking.setblocking(False)
    return hearing, waking


def _wake(waking: socket.socket) -> None:
    # Full: somebody is being woken.
    with contextlib.suppress(BlockingIOError):
        waking.send(_DONE)


def _pass_on(signals: bytes, before: int) -> None:
    """Tell whoever had the descriptor: the event loop of this thread, which stands still and reads it later."""
    if signals and before != -1:
        with contextlib.suppress(BlockingIOError):
            os.write(before, signals)
