"""A process is found by its command line, also while it becomes another program."""

from __future__ import annotations

import os
import subprocess

from hiveyard.kit import cmdline

FOREVER = 'exec $^X, "-e", $ARGV[0], @ARGV'


def test_the_words_are_those_it_was_started_with() -> None:
    with subprocess.Popen(["bash", "-c", 'exec -a "$1" sleep 60', "-", "a b\n"]) as program:
        try:
            found = cmdline.words(program.pid)
            while found[0] == b"bash":
                found = cmdline.words(program.pid)
        finally:
            program.kill()
    assert found == [b"a b\n", b"60"]


def test_a_program_that_becomes_another_all_the_time_is_never_missed() -> None:
    with subprocess.Popen(["perl", "-e", FOREVER, FOREVER, "mark"]) as program:
        try:
            missed = sum(b"mark" not in cmdline.words(program.pid) for _ in range(5000))
        finally:
            program.kill()
    assert missed == 0


def test_who_has_ended_has_none() -> None:
    with subprocess.Popen(["true"]) as program:
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert cmdline.words(program.pid) == []
    assert cmdline.words(program.pid) == []
