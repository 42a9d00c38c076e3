"""Forbid system calls to everything in a machine that shares its host's kernel (bubblewrap, containers).

`program` returns the filter, as classic BPF for the kernel; `confine` returns an executable that applies the filter to
itself and then becomes the program in its arguments. A machine's process 1 starts under the filter, and so does every
program that enters the machine: a filter is inherited by children, not by those who join a namespace.

A forbidden call fails with an error that programs know how to handle. Only a program of another architecture is killed:
its calls have other numbers, so the filter cannot judge them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import BootFailed
from hiveyard.kit import files

FAILED = 125
"""The exit code of `confine` when it cannot apply the filter or start the program."""

_SET_ID = 0o6000  # S_ISUID and S_ISGID
_CREATES = 0o100 | 0o20000000  # O_CREAT and __O_TMPFILE: other calls of open(2) leave its mode undefined
_CLONE_NEWUSER = 0x10000000
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK
_X32 = 0x40000000  # x86-64 with 32-bit pointers has the same architecture, and calls with this bit

# struct seccomp_data of <linux/seccomp.h>: offsets. An argument is 64 bits, of which the lower half comes first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Instructions of <linux/bpf_common.h>.
_LOAD, _RETURN, _IF_EQUAL, _IF_BITS = 0x20, 0x06, 0x15, 0x45


class Architecture(NamedTuple):
    """The facts that differ between architectures. `audit` is the kernel's name of one (AUDIT_ARCH_*), `elf` that of
    ELF files (EM_*)."""

    audit: int
    elf: int
    numbers: Mapping[str, int]


# The calls that every architecture has got under the same number.
_COMMON = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "clone3": 435,
    "openat2": 437,
    "fchmodat2": 452,
}

ARCHITECTURES: Mapping[str, Architecture] = {
    "x86_64": Architecture(
        audit=0xC000003E,
        elf=62,
        numbers=_COMMON
        | {
            "open": 2,
            "socket": 41,
            "socketpair": 53,
            "clone": 56,
            "creat": 85,
            "chmod": 90,
            "fchmod": 91,
            "syslog": 103,
            "mknod": 133,
            "add_key": 248,
            "request_key": 249,
            "keyctl": 250,
            "openat": 257,
            "mknodat": 259,
            "fchmodat": 268,
            "unshare": 272,
            "perf_event_open": 298,
            "open_by_handle_at": 304,
            "bpf": 321,
            "userfaultfd": 323,
        },
    ),
    "aarch64": Architecture(
        audit=0xC00000B7,
        elf=183,
        numbers=_COMMON
        | {
            "mknodat": 33,
            "fchmod": 52,
            "fchmodat": 53,
            "openat": 56,
            "unshare": 97,
            "syslog": 116,
            "socket": 198,
            "socketpair": 199,
            "add_key": 217,
            "request_key": 218,
            "keyctl": 219,
            "clone": 220,
            "perf_event_open": 241,
            "open_by_handle_at": 265,
            "bpf": 280,
            "userfaultfd": 282,
        },
    ),
}

# Interfaces of the kernel that machines do not need and that have let local users become root before; the kernel's log
# and keys, which are not divided by namespaces. io_uring would open files past this filter.
_FORBIDDEN = (
    *("add_key", "request_key", "keyctl", "syslog", "bpf", "perf_event_open", "userfaultfd", "open_by_handle_at"),
    *("io_uring_setup", "io_uring_enter", "io_uring_register"),
)
# Calls whose arguments are in memory, where a filter cannot see them. Callers use an older call when these are missing.
_MISSING = ("clone3", "openat2")
# The place of the mode among a call's arguments. A file of a guest belongs to root or to the daemon's user on the
# host's disk: with the set-user-ID bit, whoever could reach it there would become that user.
_MODES = {"creat": 1, "chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "mknod": 1, "mknodat": 2}
_OPENS = {"open": 1, "openat": 2}
"""The place of the flags; the mode is the next argument."""


class _Instruction(NamedTuple):
    """`on_true` and `on_false` are how many instructions a jump skips."""

    code: int
    value: int
    on_true: int = 0
    on_false: int = 0


def available(machine: str = "") -> bool:
    """Whether there is a filter for an architecture, this host's unless given."""
    return (machine or platform.machine()) in ARCHITECTURES


def program(machine: str = "") -> bytes:
    """Return the filter for an architecture that has one, this host's unless given."""
    architecture = ARCHITECTURES[machine or platform.machine()]
    lines = [
        _Instruction(_LOAD, _ARCHITECTURE),
        _Instruction(_IF_EQUAL, architecture.audit, 1, 0),
        _Instruction(_RETURN, _KILL),
        _Instruction(_LOAD, _NUMBER),
    ]
    if "open" in architecture.numbers:
        lines += [_Instruction(_IF_BITS, _X32, 0, 1), _refuse(errno.ENOSYS)]
    for name, number in architecture.numbers.items():
        rule = _rule(name)
        lines += [_Instruction(_IF_EQUAL, number, 0, len(rule)), *rule]
    lines.append(_Instruction(_RETURN, _ALLOW))
    return b"".join(struct.pack("<HBBI", line.code, line.on_true, line.on_false, line.value) for line in lines)


def _rule(name: str) -> list[_Instruction]:
    """The instructions that decide about a call. They all end in a return."""
    allow = _Instruction(_RETURN, _ALLOW)
    if name in _FORBIDDEN:
        return [_refuse(errno.EPERM)]
    if name in _MISSING:
        return [_refuse(errno.ENOSYS)]
    if name in _MODES:
        return [_argument(_MODES[name]), _Instruction(_IF_BITS, _SET_ID, 0, 1), _refuse(errno.EPERM), allow]
    if name in _OPENS:
        flags = [_argument(_OPENS[name]), _Instruction(_IF_BITS, _CREATES, 1, 0), allow]
        return [*flags, _argument(_OPENS[name] + 1), _Instruction(_IF_BITS, _SET_ID, 0, 1), _refuse(errno.EPERM), allow]
    if name in ("clone", "unshare"):
        return [_argument(0), _Instruction(_IF_BITS, _CLONE_NEWUSER, 0, 1), _refuse(errno.EPERM), allow]
    assert name in ("socket", "socketpair")
    checks = [_Instruction(_IF_EQUAL, family, len(_FAMILIES) - place) for place, family in enumerate(_FAMILIES)]
    return [_argument(0), *checks, _refuse(errno.EAFNOSUPPORT), allow]


def _refuse(number: int) -> _Instruction:
    return _Instruction(_RETURN, _ERRNO | number)


def _argument(place: int) -> _Instruction:
    """Load the lower half of an argument: all that the kernel looks at where a flag, a mode or a family is meant."""
    return _Instruction(_LOAD, _ARGUMENTS + 8 * place)


def install(place: Path, mode: int) -> Path | None:
    """Write the program of `confine` to `place`, unless a file is there; return `place`, None where there is no filter.

    Raises BootFailed on a file system whose programs cannot be executed."""
    if not available():
        return None
    if not place.exists():
        files.write_atomic(place, confine(), mode=mode, durable=False)
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        raise BootFailed(
            f"{place.parent} is mounted with noexec: the program that limits a machine's system calls cannot run there",
            hint=f"findmnt --target {place.parent}",
        )
    return place


def confine(machine: str = "") -> bytes:
    """Return an ELF program, `CONFINE PROGRAM ARGUMENT...`: it applies the filter and executes PROGRAM, a path.

    It is made here so that entering a machine needs no compiler, no library and no interpreter, which would take longer
    to start than everything else on the way."""
    name = machine or platform.machine()
    architecture, rules = ARCHITECTURES[name], program(name)
    base, head = 0x400000, 64 + 56
    code_size = len(_CODE[name](0))
    fprog = base + head + code_size  # struct sock_fprog: the count of instructions, and their address
    code = _CODE[name](fprog) + struct.pack("<HxxxxxxQ", len(rules) // 8, fprog + 16) + rules
    size = head + len(code)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 2, architecture.elf, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    readable_and_executable = 5
    segment = struct.pack("<IIQQQQQQ", 1, readable_and_executable, 0, base, base, size, size, 0x10000)
    return ident + elf + segment + code


def fingerprint() -> str:
    """Return a short name for the content of `confine`, which changes with the filter."""
    return hashlib.sha256(confine()).hexdigest()[:12]


def _x86_64(fprog: int) -> bytes:
    start = bytes.fromhex(
        "b8 9d000000  bf 26000000  be 01000000"  # prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        "31 d2  4d 31 d2  4d 31 c0  0f 05"
        "b8 3d010000  bf 01000000  31 f6"  # seccomp(SECCOMP_SET_MODE_FILTER, 0, fprog)
    )
    return (
        start
        + b"\xba"
        + struct.pack("<I", fprog)
        + bytes.fromhex(
            "0f 05  85 c0  75 1a"  # to the exit, when that failed
            "48 8b 0c 24"  # argc
            "48 8b 7c 24 10  48 8d 74 24 10  48 8d 54 cc 10"  # execve(argv[1], argv + 1, envp)
            "b8 3b000000  0f 05"
            "bf 7d000000  b8 3c000000  0f 05"  # exit(FAILED)
        )
    )


def _aarch64(fprog: int) -> bytes:
    low, high = fprog & 0xFFFF, fprog >> 16
    call = 0xD4000001
    words = [
        *(_move(0, 38), _move(1, 1), _move(2, 0), _move(3, 0), _move(4, 0), _move(8, 167), call),  # prctl, as above
        *(_move(0, 1), _move(1, 0), _move(2, low), 0xF2A00000 | high << 5 | 2, _move(8, 277), call),  # seccomp
        0xB5000000 | 7 << 5,  # cbnz x0: to the exit, when that failed
        *(0xF94003E3, 0xF9400BE0),  # x3 = argc, x0 = argv[1]
        *(0x910043E1, 0x8B030C22, _move(8, 221), call),  # execve(x0, argv + 1, envp)
        *(_move(0, FAILED), _move(8, 93), call),  # exit
    ]
    return struct.pack(f"<{len(words)}I", *words)


def _move(register: int, value: int) -> int:
    """`movz`: put 16 bits into a register."""
    return 0xD2800000 | value << 5 | register


_CODE = {"x86_64": _x86_64, "aarch64": _aarch64}
