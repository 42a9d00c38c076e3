"""A waiting main thread handles signals that were delivered to another thread."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest

from hiveyard.kit import waiting


class Heard(Exception):
    pass


def raise_heard(number: int, frame: object) -> None:
    raise Heard


@pytest.fixture
def other_thread_has_signals() -> Iterator[None]:
    """SIGUSR1 raises Heard. The system may deliver it to any thread except the main one."""
    assert threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGUSR1, raise_heard)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGUSR1, handler)


class Awaited(Future[str]):
    """A future that reports when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_for = threading.Event()

    def add_done_callback(self, fn: Callable[[Future[str]], object]) -> None:
        super().add_done_callback(fn)
        self.waited_for.set()


def later(future: Awaited, *, signals: bool) -> threading.Thread:
    """Start a thread that takes a signal, or none, once somebody waits, and sets the result two seconds later."""

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        future.waited_for.wait(2)
        if signals:
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(2)
        future.set_result("done")

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.usefixtures("other_thread_has_signals")
def test_a_signal_delivered_to_another_thread_ends_the_wait() -> None:
    future = Awaited()
    thread = later(future, signals=True)
    with pytest.raises(Heard):
        waiting.result(future)
    assert not future.done()
    thread.join()
    assert waiting.result(future) == "done"


@pytest.mark.usefixtures("other_thread_has_signals")
def test_without_a_signal_it_returns_the_result() -> None:
    future = Awaited()
    thread = later(future, signals=False)
    assert waiting.result(future) == "done"
    thread.join()


def test_it_raises_the_error_of_the_work() -> None:
    future: Future[str] = Future()
    future.set_exception(ValueError("no"))
    with pytest.raises(ValueError, match="no"):
        waiting.result(future)


def test_an_event_loop_of_the_main_thread_gets_its_signals_afterwards() -> None:
    async def wait_for_a_signal() -> bool:
        heard = asyncio.Event()
        future = Awaited()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
        try:
            later(future, signals=True)
            assert waiting.result(future) == "done"
            await asyncio.wait_for(heard.wait(), 10)
        finally:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGUSR1)
        return heard.is_set()

    assert asyncio.run(wait_for_a_signal())


def test_it_also_waits_in_another_thread() -> None:
    future: Future[str] = Future()
    told: list[str] = []
    thread = threading.Thread(target=lambda: told.append(waiting.result(future)))
    thread.start()
    future.set_result("done")
    thread.join()
    assert told == ["done"]
