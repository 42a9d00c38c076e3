"""The filter of system calls, run by an interpreter of BPF, and the program that applies it."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
from pathlib import Path

import pytest

from hiveyard.machines.shared import seccomp

ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
ARCHITECTURES = sorted(seccomp.ARCHITECTURES)


def _decide(program: bytes, audit: int, number: int, *arguments: int) -> int:
    """Run a filter as the kernel does."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *arguments, *[0] * (6 - len(arguments)))
    lines = list(struct.iter_unpack("<HBBI", program))
    place = value = 0
    while True:
        code, on_true, on_false, operand = lines[place]
        place += 1
        if code == 0x20:
            (value,) = struct.unpack_from("<I", data, operand)
        elif code == 0x15:
            place += on_true if value == operand else on_false
        elif code == 0x45:
            place += on_true if value & operand else on_false
        else:
            assert code == 0x06
            return int(operand)


@pytest.fixture(params=ARCHITECTURES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _call(machine: str, name: str, *arguments: int) -> int:
    architecture = seccomp.ARCHITECTURES[machine]
    return _decide(seccomp.program(machine), architecture.audit, architecture.numbers[name], *arguments)


def test_what_is_not_named_is_allowed(machine: str) -> None:
    architecture = seccomp.ARCHITECTURES[machine]
    named = set(architecture.numbers.values())
    for number in set(range(600)) - named:
        assert _decide(seccomp.program(machine), architecture.audit, number) == ALLOW


def test_another_architecture_is_killed_and_x32_is_missing() -> None:
    i386 = 0x40000003
    assert _decide(seccomp.program("x86_64"), i386, 1) == KILL
    assert _decide(seccomp.program("aarch64"), seccomp.ARCHITECTURES["x86_64"].audit, 1) == KILL
    x32_write = 0x40000001
    assert _decide(seccomp.program("x86_64"), seccomp.ARCHITECTURES["x86_64"].audit, x32_write) == ERRNO | errno.ENOSYS


def test_families_of_sockets(machine: str) -> None:
    for family in range(64):
        expected = ALLOW if family in (1, 2, 10, 16) else ERRNO | errno.EAFNOSUPPORT
        assert _call(machine, "socket", family, 1) == _call(machine, "socketpair", family, 1) == expected
    assert _call(machine, "socket", 40 | 1 << 32) == ERRNO | errno.EAFNOSUPPORT


def test_modes_with_a_set_id_bit(machine: str) -> None:
    refused = ERRNO | errno.EPERM
    for mode, expected in ((0o755, ALLOW), (0o1777, ALLOW), (0o4755, refused), (0o2755, refused), (0o6000, refused)):
        assert _call(machine, "fchmod", 3, mode) == expected
        assert _call(machine, "fchmodat", 3, 0, mode) == expected
        assert _call(machine, "fchmodat2", 3, 0, mode) == expected
        assert _call(machine, "mknodat", 3, 0, mode) == expected
        assert _call(machine, "openat", 3, 0, os.O_CREAT, mode) == expected
        assert _call(machine, "openat", 3, 0, os.O_TMPFILE, mode) == expected
        assert _call(machine, "openat", 3, 0, os.O_DIRECTORY, mode) == ALLOW


def test_user_namespaces(machine: str) -> None:
    for name in ("clone", "unshare"):
        assert _call(machine, name, 0x10000000 | 17) == ERRNO | errno.EPERM
        assert _call(machine, name, 0x003D0F00) == ALLOW  # what starts a thread
    assert _call(machine, "clone3", 0, 88) == ERRNO | errno.ENOSYS


@pytest.mark.skipif(not seccomp.available(), reason="there is no filter for this architecture")
def test_a_program_is_put_under_the_filter_with_its_arguments_and_environment(tmp_path: Path) -> None:
    confine = seccomp.install(tmp_path / "confine", 0o700)
    script = 'printf "%s|" "$0" "$@" "$WORD"; grep -E "^(Seccomp|NoNewPrivs):" /proc/self/status'
    argv = [str(confine), "/bin/bash", "-c", script, "zero", "", "a b"]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"], "WORD": "w"}, stdout=subprocess.PIPE, check=True)
    assert done.stdout == b"zero||a b|w|NoNewPrivs:\t1\nSeccomp:\t2\n"


@pytest.mark.skipif(not seccomp.available(), reason="there is no filter for this architecture")
def test_nothing_starts_without_the_filter(tmp_path: Path) -> None:
    rules = seccomp.program()
    spoiled = seccomp.confine().replace(rules, rules[:-8] + struct.pack("<HBBI", 0x20, 0, 0, 4))  # it does not return
    (tmp_path / "spoiled").write_bytes(spoiled)
    (tmp_path / "spoiled").chmod(0o755)
    done = subprocess.run([tmp_path / "spoiled", "/bin/echo", "started"], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (seccomp.FAILED, b"")
    good = seccomp.install(tmp_path / "confine", 0o700)
    assert subprocess.run([str(good), "/no/such/program"], check=False).returncode == seccomp.FAILED
    assert subprocess.run([str(good)], check=False).returncode == seccomp.FAILED
