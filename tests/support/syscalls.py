"""Programs of one system call, for machines without a compiler or an interpreter."""

from __future__ import annotations

import platform
import struct
from collections.abc import Sequence

from hiveyard.machines.shared.seccomp import ARCHITECTURES

HERE = platform.machine()


def one_call(name: str, arguments: Sequence[int | bytes]) -> bytes:
    """Return an ELF program that makes a system call and exits with its error number, 0 when it succeeds. An argument
    of bytes stands for the address of a string.

    A descriptor that the call returns is not used."""
    architecture = ARCHITECTURES[HERE]
    base, head = 0x400000, 64 + 56
    call = _CALLS[HERE]
    size = len(call(0, [0] * len(arguments)))
    strings, values = b"", list[int]()
    for argument in arguments:
        values.append(argument if isinstance(argument, int) else base + head + size + len(strings))
        strings += b"" if isinstance(argument, int) else argument + b"\0"
    code = call(architecture.numbers[name], values) + strings
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 2, architecture.elf, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, head + len(code), head + len(code), 0x10000)
    return ident + elf + segment + code


def _x86_64(number: int, arguments: Sequence[int]) -> bytes:
    loads = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
    words = [load + struct.pack("<Q", value) for load, value in zip(loads, arguments, strict=False)]
    # mov eax, number; syscall; neg rax; when that is negative, 0; exit
    end = bytes.fromhex("0f05 48f7d8 31ff 4885c0 480f4ff8 b83c000000 0f05")
    return b"".join(words) + b"\xb8" + struct.pack("<I", number) + end


def _aarch64(number: int, arguments: Sequence[int]) -> bytes:
    words = []
    for register, value in [*enumerate(arguments), (8, number)]:
        parts = [value >> 16 * place & 0xFFFF for place in range(4)]
        words.append(0xD2800000 | parts[0] << 5 | register)  # movz, then movk
        words += [0xF2800000 | place << 21 | parts[place] << 5 | register for place in (1, 2, 3)]
    # svc; negs x0, x0; csel x0, x0, xzr, gt; x8 = exit; svc
    words += [0xD4000001, 0xEB0003E0, 0x9A9FC000, 0xD2800BA8, 0xD4000001]
    return struct.pack(f"<{len(words)}I", *words)


_CALLS = {"x86_64": _x86_64, "aarch64": _aarch64}
