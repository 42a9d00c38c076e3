"""Test that a machine's process is identified, whatever it does to look like another one or like none."""

from __future__ import annotations

import subprocess
import sys

import pytest

from hiveyard.machines.bubblewrap.record import HostProcess, start_time

WITHOUT_A_COMMAND_LINE = """
import ctypes, os, signal
fields = open("/proc/self/stat").read().rpartition(") ")[2].split()
libc = ctypes.CDLL(None)
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.munmap(int(fields[45]) & ~4095, 4096)
os.write(1, b"done")
signal.pause()
"""
WITHOUT_ITS_FIRST_THREAD = """
import ctypes, os, threading, time
def rest():
    while ") Z" not in open(f"/proc/{os.getpid()}/stat").read():
        time.sleep(0.01)
    os.write(1, b"done")
    time.sleep(60)
threading.Thread(target=rest).start()
ctypes.CDLL(None).pthread_exit(None)
"""


def begun(code: str) -> subprocess.Popen[bytes]:
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert program.stdout is not None
    assert program.stdout.read(4) == b"done"
    return program


def test_who_gave_its_command_line_away_lives() -> None:
    with begun(WITHOUT_A_COMMAND_LINE) as program:
        alive = HostProcess(program.pid, start_time(program.pid))
        assert alive.is_running()
        assert not alive.has_ended()
        alive.kill()
    assert not alive.is_running()
    assert alive.has_ended()


def test_who_lost_its_first_thread_is_not_gone_and_can_be_killed() -> None:
    with begun(WITHOUT_ITS_FIRST_THREAD) as program:
        alive = HostProcess(program.pid, start_time(program.pid))
        assert not alive.has_ended()
        alive.kill()
        assert program.wait(30) == -9
    assert alive.has_ended()


@pytest.mark.parametrize("later", [1, -1])
def test_another_process_of_that_number_is_not_taken_for_it(later: int) -> None:
    with subprocess.Popen(["sleep", "60"]) as program:
        other = HostProcess(program.pid, start_time(program.pid) + later)
        assert other.has_ended()
        assert not other.is_running()
        other.kill()
        assert program.poll() is None
        program.kill()
