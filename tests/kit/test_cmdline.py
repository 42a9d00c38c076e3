"""A process is found by its command line, even during execve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from hiveyard.kit import cmdline
from tests.support import hidden

FOREVER = 'exec $^X, "-e", $ARGV[0], @ARGV'


class FakeTime:
    """A clock that advances only during sleeps, and records them."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return sum(self.slept)

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)


class Interrupting(FakeTime):
    """A clock at whose first sleep the process at `place` gets the command line `line`."""

    def __init__(self, place: Path, line: bytes) -> None:
        super().__init__()
        self._place = place
        self._line = line

    def sleep(self, seconds: float, /) -> None:
        super().sleep(seconds)
        (self._place / "cmdline").write_bytes(self._line)


def words_of(pid: int) -> list[bytes]:
    return dict(cmdline.words([pid])).get(pid, [])


def made(proc: Path, pid: int, line: bytes, *, numbers: str = "", flags: int = 0) -> Path:
    """Make a process as /proc shows it. `numbers` are its pids in nested pid namespaces."""
    process = proc / str(pid)
    process.mkdir(parents=True)
    (process / "cmdline").write_bytes(line)
    (process / "stat").write_text(f"{pid} (a b) S 1 1 1 0 -1 {flags} 0 0\n")
    (process / "status").write_text(f"Name:\ta b\nNSpid:\t{pid}{numbers}\nThreads:\t1\n")
    return process


def test_the_words_are_the_argv_of_the_process() -> None:
    with subprocess.Popen(["bash", "-c", 'exec -a "$1" sleep 60', "-", "a b\n"]) as program:
        try:
            found = words_of(program.pid)
            while found[0] == b"bash":
                found = words_of(program.pid)
        finally:
            program.kill()
    assert found == [b"a b\n", b"60"]


def test_a_program_that_always_calls_exec_is_never_missed() -> None:
    with subprocess.Popen(["perl", "-e", FOREVER, FOREVER, "mark"]) as program:
        try:
            missed = sum(b"mark" not in words_of(program.pid) for _ in range(5000))
        finally:
            program.kill()
    assert missed == 0


def test_an_ended_process_has_no_command_line() -> None:
    with subprocess.Popen(["true"]) as program:
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert words_of(program.pid) == []
    assert words_of(program.pid) == []


def test_all_processes_are_read_even_if_some_have_no_command_line() -> None:
    found = dict(cmdline.words(cmdline.all_pids()))
    assert os.getpid() in found
    assert all(found.values())


def test_a_thousand_processes_without_a_command_line_are_waited_for_together(tmp_path: Path) -> None:
    for pid in range(1, 1001):
        made(tmp_path, pid, b"")
    made(tmp_path, 1001, b"late\0")
    fake_time = FakeTime()
    assert list(cmdline.words(range(1, 1002), proc=tmp_path, time=fake_time)) == [(1001, [b"late"])]
    assert 2 <= sum(fake_time.slept) < 2.1
    assert len(fake_time.slept) < 60


def test_a_process_that_calls_exec_during_the_wait_is_found(tmp_path: Path) -> None:
    made(tmp_path, 1, b"")
    fake_time = Interrupting(made(tmp_path, 2, b""), b"sleep\0now\0")
    assert list(cmdline.words([1, 2], proc=tmp_path, time=fake_time)) == [(2, [b"sleep", b"now"])]


def test_processes_of_guests_and_of_the_kernel_are_not_waited_for(tmp_path: Path) -> None:
    made(tmp_path, 1, b"", numbers="\t7")
    made(tmp_path, 2, b"", numbers="\t9\t1")
    made(tmp_path, 3, b"", flags=0x00200000)
    fake_time = FakeTime()
    assert list(cmdline.words([1, 2, 3], proc=tmp_path, time=fake_time)) == []
    assert not fake_time.slept


def test_the_process_1_of_a_guest_is_waited_for(tmp_path: Path) -> None:
    fake_time = Interrupting(made(tmp_path, 1, b"", numbers="\t1"), b"bash\0")
    assert list(cmdline.words([1], proc=tmp_path, time=fake_time)) == [(1, [b"bash"])]


def test_only_the_beginning_of_a_long_command_line_is_read(tmp_path: Path) -> None:
    made(tmp_path, 1, b"x\0" * (1 << 20))
    ((_, words),) = cmdline.words([1], proc=tmp_path)
    assert len(words) < 1 << 17


def test_the_wait_for_a_process_that_cleared_its_command_line_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", hidden.PROGRAM, "1"], stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        pid = int(program.stdout.readline())
        try:
            fake_time = FakeTime()
            assert list(cmdline.words([pid], time=fake_time)) == []
        finally:
            os.kill(pid, signal.SIGKILL)
            program.kill()
    assert 2 <= sum(fake_time.slept) < 2.1
