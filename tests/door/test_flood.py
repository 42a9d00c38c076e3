"""Guests that connect as often as they can leave the daemon what it needs to work."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from hiveyard.door.descriptors import told_seldom

from .house import HeldClock


def flood(path: Path, connections: int, held: ExitStack) -> None:
    """Connect so often, or until nobody answers any more."""
    for _ in range(connections):
        one = held.enter_context(socket.socket(socket.AF_UNIX))
        one.setblocking(False)
        for _ in range(100):
            try:
                one.connect(str(path))
                break
            except BlockingIOError:
                time.sleep(0.005)
        else:
            return


def test_two_doors_that_are_flooded_leave_files_and_programs_to_the_daemon(tmp_path: Path) -> None:
    program = [sys.executable, str(Path(__file__).with_name("flooded.py")), str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as daemon, ExitStack() as held:
        held.callback(daemon.kill)
        assert daemon.stdin is not None and daemon.stdout is not None and daemon.stderr is not None
        assert daemon.stdout.readline() == "open 300\n"
        for directory in "12":
            flood(tmp_path / directory / "door.sock", 280, held)
            for _ in range(5):
                daemon.stdin.write("\n")
                daemon.stdin.flush()
                assert daemon.stdout.readline() == "done\n"
        daemon.stdin.close()
        assert len(daemon.stderr.read()) < 2000


@pytest.mark.anyio
async def test_a_connection_that_cannot_be_taken_is_told_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    with told_seldom(HeldClock()):
        for _ in range(500):
            error = {
                "message": "socket.accept() out of system resource",
                "exception": OSError(24, "Too many open files"),
            }
            loop.call_exception_handler(error)
        loop.call_exception_handler({"message": "something else"})
    told = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(told) == 4 and "Too many open files" in told[0] and told[-1] == "something else"
