"""The guest's script, run on this host, returns the output of a program."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import anyio
import pytest

from hiveyard.kit import process
from hiveyard.machines.morph.program import Program
from hiveyard.machines.morph.wire import Executed, Said

pytestmark = pytest.mark.anyio
ID, PIECE = "0123456789abcdef", 64 << 10


class Here:
    """A way to a guest that is a directory of this host. Its program writes a word to stderr after the first look."""

    streaming = False

    def __init__(self, top: Path) -> None:
        self._top = top
        self._looks = 0
        (top / ID).mkdir()
        os.mkfifo(top / ID / "idle")

    def say(self, output: str, number: int, data: bytes) -> None:
        (self._top / ID / f"{output}.{number}").write_bytes(data)
        (self._top / ID / f"{output}.{number}.ok").touch()

    async def execute(self, command: Sequence[str], seconds: float) -> Executed:
        argv = [word.replace("/run/hiveyard-exec", str(self._top)) for word in command]
        done = await process.run(argv, limit=64 << 20)
        self._looks += 1
        if self._looks == 1:
            self.say("e", 0, b"begun\n")
        return Executed(exit_code=done.status, stdout=done.stdout.decode(), stderr=done.stderr.decode())

    async def live(self, command: Sequence[str]) -> AsyncGenerator[Said, None]:
        raise NotImplementedError("it does not stream")
        yield

    async def check(self) -> None:
        return


async def test_the_first_word_of_an_output_is_got_although_nobody_reads_the_other(tmp_path: Path) -> None:
    """`Guest.open` waits for that word, which is late in a machine that is short of processors."""
    guest = Here(tmp_path)
    for number in range(20):
        guest.say("o", number, bytes(PIECE))
    program = Program(ID, guest)
    with anyio.fail_after(60):
        assert await program.receive_error() == b"begun\n"
        assert await program.receive() == bytes(20 * PIECE)
