"""Guests that connect as often as possible leave the daemon enough descriptors to work."""

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

from hiveyard.door.descriptors import limit_accept_warnings

from .house import HeldClock


def flood(path: Path, connections: int, held: ExitStack) -> None:
    """Connect that often, or until nothing answers."""
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


def test_two_flooded_doors_leave_files_and_programs_to_the_daemon(tmp_path: Path) -> None:
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
async def test_failed_accepts_are_logged_at_a_low_rate(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    with limit_accept_warnings(HeldClock()):
        for _ in range(500):
            error = {
                "message": "socket.accept() out of system resource",
                "exception": OSError(24, "Too many open files"),
            }
            loop.call_exception_handler(error)
        loop.call_exception_handler({"message": "something else"})
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 4 and "Too many open files" in warnings[0] and warnings[-1] == "something else"
